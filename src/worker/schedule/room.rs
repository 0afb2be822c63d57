//! Instance slots of one executor: which flow may begin another instance.

/// How many instances there may be at the same time.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct Slots {
    /// In all; at least 1.
    pub(in crate::worker) instances: usize,
    /// Of one flow, unless more are reserved for it, so that one that spins leaves slots to the others.
    pub(in crate::worker) of_one: usize,
}

/// Slots taken and slots kept for somebody.
///
/// A flow's reserved slots are its own: nobody else takes them. What is not reserved is common; at least half always is,
/// and where there are two common slots or more no flow has all of them, so that whoever has none of its own gets its turn.
#[derive(Debug)]
pub(super) struct Room {
    flows: Box<[Taken]>,
    of_one: usize,
    /// Common slots that are free.
    common: usize,
    instances: usize,
}

#[derive(Debug, Clone, Copy)]
struct Taken {
    reserved: usize,
    instances: usize,
}

impl Room {
    /// `reserved` by flow, in order. What would leave less than half is not reserved: first come, first served. The
    /// configuration has seen to it that there is no such thing.
    pub(super) fn new(slots: Slots, reserved: impl IntoIterator<Item = usize>) -> Self {
        let mut common = slots.instances.max(1);
        let least = common.div_ceil(2);
        let flows = reserved
            .into_iter()
            .map(|wanted| {
                let reserved = wanted.min(common - least);
                common -= reserved;
                Taken { reserved, instances: 0 }
            })
            .collect();
        let of_one = slots.of_one.min(common.div_ceil(2)).max(1);
        Self { flows, of_one, common, instances: 0 }
    }

    /// Is there a slot that any flow may take?
    pub(super) fn has_common(&self) -> bool {
        self.common > 0
    }

    pub(super) fn has_for(&self, flow: usize) -> bool {
        self.flows.get(flow).is_some_and(|of| {
            of.instances < of.reserved || (self.common > 0 && of.instances < self.of_one.max(of.reserved))
        })
    }

    pub(super) fn began(&mut self, flow: usize) {
        if let Some(of) = self.flows.get_mut(flow) {
            of.instances += 1;
            self.instances += 1;
            if of.instances > of.reserved {
                self.common = self.common.saturating_sub(1);
            }
        }
    }

    pub(super) fn ended(&mut self, flow: usize) {
        if let Some(of) = self.flows.get_mut(flow).filter(|of| of.instances > 0) {
            if of.instances > of.reserved {
                self.common += 1;
            }
            of.instances -= 1;
            self.instances = self.instances.saturating_sub(1);
        }
    }

    pub(super) fn instances(&self) -> usize {
        self.instances
    }
}
