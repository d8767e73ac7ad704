//! Where bytes that the guest prints go: a serial line's other end, or a firmware's debug console.

/// Takes bytes in order. Called on vCPU threads.
pub trait Sink: Send + Sync {
    /// Takes all of `bytes`. Returns soon; it may wait while a slow reader has filled the buffer behind it.
    fn put(&self, bytes: &[u8]);
}

/// Swallows everything: a line with nothing connected.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSink;

impl Sink for NoSink {
    fn put(&self, _: &[u8]) {}
}
