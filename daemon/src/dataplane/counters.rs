//! What the data thread counts beside the engine's drops.

/// Totals since the start of the data thread, in packets or datagrams unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Times that the thread woke up.
    pub wakeups: u64,
    /// Datagrams received on the mesh sockets.
    pub datagrams_received: u64,
    /// Datagrams handed to the kernel.
    pub datagrams_sent: u64,
    /// Packets read from TUN devices.
    pub packets_from_tun: u64,
    /// Packets written to TUN devices.
    pub packets_to_tun: u64,
    /// Failed reads from the mesh sockets, in calls.
    pub udp_receive_errors: u64,
    /// Failed reads from TUN devices, in calls.
    pub tun_read_errors: u64,
    /// Packets that a TUN device did not take.
    pub tun_write_errors: u64,
    /// QUIC datagrams dropped because the relay client did not keep up.
    pub quic_queue_full: u64,
    /// Events and relay messages dropped because the rest of the daemon did not keep up.
    pub output_queue_full: u64,
}
