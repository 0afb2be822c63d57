//! What policies may have at most, in a class and in a tenant: the same keys in both.

use crate::artifact::{Ceiling, INSTANCE_SPACE, Limits};
use crate::document::values::{number, size};
use crate::document::{Complaints, Found, Section};

/// What a class gives that says nothing.
pub(super) const CLASS: Ceiling = Ceiling {
    memory: 4 << 20,
    table_elements: 10_000,
    output: 4 << 20,
    stack: 256 << 10,
    host_calls: 10_000,
    fuel: None,
};
/// What no class can exceed; a tenant that says nothing has its class's.
pub(super) const MOST: Ceiling = Ceiling {
    memory: 1 << 30,
    table_elements: 10_000,
    output: 4 << 20,
    stack: 1 << 20,
    host_calls: 1_000_000,
    fuel: None,
};

/// A tenant that may have less than its class says so; who says more gets the class's.
pub(super) fn read(section: &mut Section<'_>, default: &Ceiling) -> Option<Ceiling> {
    let memory = section.defaulted("memory", default.memory, size(64 << 10..=1 << 30));
    let table_elements =
        section.defaulted("table_elements", default.table_elements, number(0..=MOST.table_elements));
    let output = section.defaulted("output", default.output, size(1 << 10..=MOST.output));
    let stack = section.defaulted("stack", default.stack, size(64 << 10..=MOST.stack));
    let host_calls = section.defaulted("host_calls", default.host_calls, number(0..=MOST.host_calls));
    let fuel = section.optional("fuel", number(1..=u64::MAX >> 1));
    Some(Ceiling {
        memory: memory?.value,
        table_elements: table_elements?.value,
        output: output?.value,
        stack: stack?.value,
        host_calls: host_calls?.value,
        fuel: fuel.map(|found| found.value),
    })
}

/// Each kind of engine that a class's policies may ask for reserves address space for all instances of the class: one policy
/// that asks for another stack must not be what takes the room of another's.
pub(super) fn room(complaints: &Complaints, instances: Option<&Found<u32>>, ceiling: Option<&Ceiling>) {
    let (Some(instances), Some(ceiling)) = (instances, ceiling) else { return };
    let (engines, most) = (ceiling.engines(), ceiling.instances_max());
    if u64::from(instances.value) <= most {
        return;
    }
    let reserved = |instances: u64| instances.saturating_mul(engines).saturating_mul(INSTANCE_SPACE);
    let [smallest, ..] = Limits::STACKS;
    let why = format!(
        "instances: {} in each of the {engines} engines that policies may ask for (stacks of {} to {} KiB{}) reserve \
         {} TiB of address space, a worker has {} for them; at most {most}, or a smaller stack, or fuel for all, or another class",
        instances.value,
        smallest >> 10,
        ceiling.stack.max(smallest) >> 10,
        if ceiling.fuel.is_some() { "" } else { ", with fuel and without" },
        reserved(instances.value.into()).div_ceil(1 << 40),
        reserved(most) >> 40,
    );
    complaints.add(instances.at, why);
}
