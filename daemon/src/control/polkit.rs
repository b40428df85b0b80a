//! Asks polkit about callers on the system bus.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use zbus::fdo::DBusProxy;
use zbus::message::{Flags, Header};
use zbus::names::BusName;
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use super::access::{Access, Credentials, Verb};

/// How long polkit may take when nobody has to be asked.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a person may take to type a password.
const PERSON_TIMEOUT: Duration = Duration::from_secs(120);

/// polkit on the bus that a call came over.
#[derive(Debug, Clone, Default)]
pub(super) struct Polkit {
    complained: Arc<AtomicBool>,
}

impl Polkit {
    /// Whether the sender of `header` may; asks a person only if the sender is prepared to wait for one.
    pub(super) async fn may(
        &self,
        verb: Verb,
        header: &Header<'_>,
        bus: &zbus::Connection,
    ) -> bool {
        let reading = verb.access() == Access::Read;
        if !reading && credentials(header, bus).await.may(verb.access()).await {
            return true;
        }
        match ask(verb, header, bus).await {
            Ok(may) => {
                self.complained.store(false, Ordering::Relaxed);
                may
            }
            Err(reason) => {
                if !self.complained.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "polkit does not answer, so only root and group meshd may change anything: {reason}"
                    );
                }
                reading
            }
        }
    }
}

async fn ask(verb: Verb, header: &Header<'_>, bus: &zbus::Connection) -> Result<bool, String> {
    let subject = Subject::new_for_message_header(header).map_err(|error| error.to_string())?;
    let patient = header
        .primary()
        .flags()
        .contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let (flags, limit) = if patient {
        (
            CheckAuthorizationFlags::ALLOW_USER_INTERACTION,
            PERSON_TIMEOUT,
        )
    } else {
        (CheckAuthorizationFlags::empty(), CHECK_TIMEOUT)
    };
    let details = HashMap::new();
    let check = async {
        let authority = AuthorityProxy::new(bus).await?;
        authority
            .check_authorization(&subject, verb.action(), &details, flags, "")
            .await
    };
    match timeout(limit, check).await {
        Ok(Ok(result)) => Ok(result.is_authorized),
        Ok(Err(error)) => Err(error.to_string()),
        // Nobody typed the password.
        Err(_) if patient => Ok(false),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn credentials(header: &Header<'_>, bus: &zbus::Connection) -> Credentials {
    let Some(sender) = header.sender() else {
        return Credentials::default();
    };
    let look = async {
        let daemon = DBusProxy::new(bus).await?;
        daemon
            .get_connection_credentials(BusName::from(sender.clone()))
            .await
            .map_err(zbus::Error::from)
    };
    match timeout(CHECK_TIMEOUT, look).await {
        Ok(Ok(known)) => Credentials {
            uid: known.unix_user_id(),
            groups: known.unix_group_ids().cloned(),
        },
        _ => Credentials::default(),
    }
}
