//! Who may do what: the one table that both the system bus and the control socket go by.
//!
//! Uid and groups decide, on either. On the bus polkit can grant more, by the actions that carry the same table
//! (`net.meshd.mesh1.policy`): to the active local session, which only polkit knows, and to whoever has an
//! administrator's password.

use std::ffi::CString;

use mesh_bus::{Error, ErrorKind};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// Members of this group may bring networks up and down.
const GROUP: &str = "meshd";

/// The commands of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Status,
    Ping,
    Netcheck,
    Explain,
    WireguardConfig,
    Up,
    Down,
    Reload,
}

/// What a command takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Changes nothing: everyone.
    Read,
    /// Interfaces up and down: the active local session (which only polkit knows), group [`GROUP`], administrators.
    Operate,
    /// Membership, policy, configuration: administrators.
    Administer,
}

impl Verb {
    /// The table.
    pub(super) const fn access(self) -> Access {
        match self {
            Self::Status | Self::Ping | Self::Netcheck | Self::Explain | Self::WireguardConfig => {
                Access::Read
            }
            Self::Up | Self::Down => Access::Operate,
            Self::Reload => Access::Administer,
        }
    }

    /// The polkit action.
    pub(super) const fn action(self) -> &'static str {
        match self {
            Self::Status => "net.meshd.mesh1.status",
            Self::Ping => "net.meshd.mesh1.ping",
            Self::Netcheck => "net.meshd.mesh1.netcheck",
            Self::Explain => "net.meshd.mesh1.explain",
            Self::WireguardConfig => "net.meshd.mesh1.wireguard-config",
            Self::Up => "net.meshd.mesh1.up",
            Self::Down => "net.meshd.mesh1.down",
            Self::Reload => "net.meshd.mesh1.reload",
        }
    }

    /// What whoever may not is told.
    pub(super) fn refusal(self) -> Error {
        let (what, remedy) = match self {
            Self::Status => ("see the status", ""),
            Self::Ping => ("ping", ""),
            Self::Netcheck => ("check the network", ""),
            Self::Explain => ("see how a peer is reached", ""),
            Self::WireguardConfig => ("see the WireGuard configuration", ""),
            Self::Up => ("bring a network up", " or as a member of group meshd"),
            Self::Down => ("take a network down", " or as a member of group meshd"),
            Self::Reload => ("reload the configuration", ""),
        };
        Error::new(
            ErrorKind::NotAuthorised,
            format!("you may not {what}; run this as root{remedy}"),
        )
    }
}

/// Whoever asks, as the kernel or the bus daemon vouches for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    /// User ID; `None` when nobody vouches for one.
    pub(super) uid: Option<u32>,
    /// Primary and supplementary groups; `None` when only the system's user database knows them.
    pub(super) groups: Option<Vec<u32>>,
}

impl Credentials {
    /// Whether the table lets them, without asking polkit.
    pub(super) async fn may(&self, access: Access) -> bool {
        match (access, self.uid) {
            (Access::Read, _) | (_, Some(0)) => true,
            (Access::Administer, _) | (_, None) => false,
            (Access::Operate, Some(uid)) => {
                let groups = self.groups.clone();
                // The user database may be a server on the network.
                let lookup = tokio::task::spawn_blocking(move || is_operator(uid, groups));
                lookup.await.ok().flatten().unwrap_or(false)
            }
        }
    }
}

/// Whether a user is in [`GROUP`]; `None` if there is no such group or user.
fn is_operator(uid: u32, groups: Option<Vec<u32>>) -> Option<bool> {
    let group = Group::from_name(GROUP).ok()??.gid.as_raw();
    let groups = match groups {
        Some(groups) => groups,
        None => groups_of(uid)?,
    };
    Some(groups.contains(&group))
}

/// Primary and supplementary groups of a user.
fn groups_of(uid: u32) -> Option<Vec<u32>> {
    let user = User::from_uid(Uid::from_raw(uid)).ok()??;
    let name = CString::new(user.name).ok()?;
    let groups = getgrouplist(&name, user.gid).ok()?;
    Some(groups.into_iter().map(Gid::as_raw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBS: [Verb; 8] = [
        Verb::Status,
        Verb::Ping,
        Verb::Netcheck,
        Verb::Explain,
        Verb::WireguardConfig,
        Verb::Up,
        Verb::Down,
        Verb::Reload,
    ];

    fn user(uid: u32, groups: &[u32]) -> Credentials {
        Credentials {
            uid: Some(uid),
            groups: Some(groups.to_vec()),
        }
    }

    #[tokio::test]
    async fn root_may_do_everything_and_a_stranger_only_read() {
        for verb in VERBS {
            assert!(user(0, &[0]).may(verb.access()).await, "{verb:?}");
            let reading = verb.access() == Access::Read;
            assert_eq!(
                user(65_534, &[65_534]).may(verb.access()).await,
                reading,
                "{verb:?}"
            );
            assert_eq!(
                Credentials::default().may(verb.access()).await,
                reading,
                "{verb:?}"
            );
        }
    }

    #[test]
    fn the_user_database_knows_the_groups_of_root() {
        assert!(groups_of(0).unwrap().contains(&0));
        assert_eq!(groups_of(4_000_000_000), None);
    }

    #[test]
    fn refusals_say_what_to_do() {
        for verb in VERBS {
            let text = verb.refusal().to_string();
            assert!(
                text.starts_with("you may not ") && text.contains("; run this as root"),
                "{text}"
            );
        }
    }

    /// The shipped polkit actions, in `packaging/`.
    const POLICY: &str = include_str!("../../../packaging/polkit/net.meshd.mesh1.policy");

    /// The part of the policy that is about one action.
    fn action(verb: Verb) -> &'static str {
        let start = POLICY
            .find(&format!("<action id=\"{}\">", verb.action()))
            .unwrap_or_else(|| panic!("{} is missing", verb.action()));
        let rest = &POLICY[start..];
        &rest[..rest.find("</action>").unwrap()]
    }

    #[test]
    fn polkit_actions_say_the_same_as_the_table() {
        for verb in VERBS {
            let (any, active) = match verb.access() {
                Access::Read => ("yes", "yes"),
                Access::Operate => ("auth_admin", "yes"),
                Access::Administer => ("auth_admin", "auth_admin_keep"),
            };
            let text = action(verb);
            assert!(
                text.contains(&format!("<allow_any>{any}</allow_any>")),
                "{text}"
            );
            assert!(
                text.contains(&format!("<allow_inactive>{any}</allow_inactive>")),
                "{text}"
            );
            assert!(
                text.contains(&format!("<allow_active>{active}</allow_active>")),
                "{text}"
            );
        }
        assert_eq!(POLICY.matches("<action id=").count(), VERBS.len());
    }

    #[test]
    fn the_daemon_may_ask_polkit_about_others_without_being_root() {
        for verb in VERBS {
            assert!(
                action(verb).contains(
                    "<annotate key=\"org.freedesktop.policykit.owner\">unix-user:meshd</annotate>"
                ),
                "{verb:?}"
            );
        }
    }
}
