//! Fakes for tests: what the hypervisor and the host would provide.
