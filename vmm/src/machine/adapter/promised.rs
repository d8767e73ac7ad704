//! Targets that are free: each is promised to one who asks at a time.

use super::Adapter;

/// A target without a unit, which nobody else is given as free until this is dropped.
pub struct Promise<'a> {
    adapter: &'a Adapter,
    target: u8,
}

impl Promise<'_> {
    /// Which one.
    pub fn target(&self) -> u8 {
        self.target
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.adapter.lock().promised.remove(&self.target);
    }
}

impl Adapter {
    /// The first target without a unit; one where nothing has to wait, if there is any.
    pub fn free_target(&self) -> Option<Promise<'_>> {
        let unnoticed = self.unnoticed();
        let mut inventory = self.lock();
        // A port of a fabric may have no units.
        let is_empty = |id: u8| match self.has_fabric() {
            true => !inventory.units.keys().any(|(target, _)| *target == id),
            false => !inventory.targets.contains_key(&id),
        };
        let is_free = |id: &u8| is_empty(*id) && !inventory.promised.contains(id);
        let mut free = (0..=u8::MAX).filter(is_free);
        let any = free.clone().next();
        let target = free.find(|id| !unnoticed.contains(id)).or(any)?;
        inventory.promised.insert(target);
        Some(Promise { adapter: self, target })
    }
}
