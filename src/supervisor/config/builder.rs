//! What one builder may use: `[builder]`.

use std::time::Duration;

use super::Builder;
use crate::document::values::{duration, size};
use crate::document::{Complaints, Found, Section};
use crate::wire::control::BuildLimits;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn read(complaints: &Complaints, section: Option<Section<'_>>) -> Option<Builder> {
    let Some(mut section) = section else { return Some(Builder::default()) };
    let default = Builder::default();
    let cpu = section.defaulted("cpu", default.cpu(), duration(SECOND..=60 * MINUTE));
    let memory = section.defaulted("memory", default.limits.memory, size(64 << 20..=1 << 40));
    let wall = section.defaulted("wall", default.wall, duration(SECOND..=60 * MINUTE));
    let output = section.defaulted("output", default.limits.output, size(1 << 20..=1 << 30));
    section.finish();
    if let Some(Found { value, at }) = &cpu
        && value.subsec_nanos() != 0
    {
        complaints.add(*at, "cpu: the kernel counts whole seconds of processor time".to_owned());
    }
    let limits = BuildLimits {
        cpu: u32::try_from(cpu?.value.as_secs()).unwrap_or(u32::MAX),
        memory: memory?.value,
        output: output?.value,
    };
    Some(Builder { limits, wall: wall?.value })
}
