//! Bulk memory instructions in steps: the functions that are called in their place.
//!
//! `memory.fill`, `memory.copy` and `memory.init` cannot be interrupted, and 4 MiB take 2 milliseconds. A helper does
//! the same in steps of 64 KiB in a loop, where the engine looks at the deadline each time around. What it must not
//! change:
//!
//! - Nothing is written when any of it is out of bounds. Memory never shrinks, so one check before the first step holds
//!   for all; what fails it, or is short, is left to the original instruction, which then traps as it always did.
//! - Overlapping copies: forward when the destination is lower, backward otherwise, so that no step overwrites what a
//!   later one reads.
//!
//! The helpers are appended after all bodies have been rewritten, so their own bulk instructions stay.

use wasm_encoder::{BlockType, Function, InstructionSink};
use wasmparser::Operator;

/// Bytes between two looks at the deadline: about 30 microseconds.
const STEP: i32 = 64 << 10;
const STEP_BYTES: usize = 64 << 10;

/// Parameters of every helper, in the order in which the instructions take their operands.
const TO: u32 = 0;
/// Where to copy from; for a fill, the byte.
const FROM: u32 = 1;
const LEN: u32 = 2;

/// A bulk instruction on the only memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bulk {
    Fill,
    Copy,
    /// From the data segment of this index.
    Init(u32),
}

impl Bulk {
    pub(super) fn of(operator: &Operator<'_>) -> Option<Self> {
        match operator {
            Operator::MemoryFill { .. } => Some(Self::Fill),
            Operator::MemoryCopy { .. } => Some(Self::Copy),
            Operator::MemoryInit { data_index, .. } => Some(Self::Init(*data_index)),
            _ => None,
        }
    }

    fn emit(self, code: &mut InstructionSink<'_>) {
        match self {
            Self::Fill => code.memory_fill(0),
            Self::Copy => code.memory_copy(0, 0),
            Self::Init(segment) => code.memory_init(0, segment),
        };
    }
}

/// The helpers that a module turns out to need.
pub(super) struct Helpers {
    /// Index of the first one: all functions that the module has by itself come before.
    first: u32,
    segments: Vec<usize>,
    needed: Vec<Bulk>,
}

impl Helpers {
    /// `(func (param i32 i32 i32))`, as an entry of the type section.
    pub(super) const TYPE: [u8; 6] = [0x60, 3, 0x7f, 0x7f, 0x7f, 0];

    pub(super) fn new(first: u32, segments: Vec<usize>) -> Self {
        Self { first, segments, needed: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.needed.is_empty()
    }

    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.needed.len()).unwrap_or(u32::MAX)
    }

    /// The function to call instead. None where the instruction itself never takes longer than a step: a data segment
    /// that is not longer.
    pub(super) fn function(&mut self, bulk: Bulk) -> Option<u32> {
        if matches!(bulk, Bulk::Init(segment) if self.segment(segment) <= STEP_BYTES) {
            return None;
        }
        let position = self.needed.iter().position(|needed| *needed == bulk).unwrap_or_else(|| {
            self.needed.push(bulk);
            self.needed.len() - 1
        });
        self.first.checked_add(u32::try_from(position).ok()?)
    }

    pub(super) fn bodies(&self) -> impl Iterator<Item = Function> {
        self.needed.iter().map(|bulk| match *bulk {
            Bulk::Init(segment) => init(segment, self.segment(segment)),
            bulk => fill_or_copy(bulk),
        })
    }

    fn segment(&self, index: u32) -> usize {
        usize::try_from(index).ok().and_then(|index| self.segments.get(index)).copied().unwrap_or(0)
    }
}

fn fill_or_copy(bulk: Bulk) -> Function {
    let mut function = Function::new([]);
    let mut code = function.instructions();
    code.block(BlockType::Empty);
    leave_if_short(&mut code);
    leave_if_beyond_memory(&mut code, TO);
    if bulk == Bulk::Copy {
        leave_if_beyond_memory(&mut code, FROM);
        code.local_get(TO).local_get(FROM).i32_le_u();
        code.if_(BlockType::Empty);
        steps_forward(&mut code, bulk);
        code.else_();
        steps_backward(&mut code, bulk);
        code.end();
    } else {
        steps_forward(&mut code, bulk);
    }
    code.end();
    finish(&mut code, bulk);
    function
}

fn init(segment: u32, segment_len: usize) -> Function {
    let bulk = Bulk::Init(segment);
    let mut function = Function::new([]);
    let mut code = function.instructions();
    code.block(BlockType::Empty);
    leave_if_short(&mut code);
    leave_if_beyond_memory(&mut code, TO);
    end_of(&mut code, FROM);
    code.i64_const(i64::try_from(segment_len).unwrap_or(i64::MAX)).i64_gt_u().br_if(0);
    // A segment that was dropped has length 0. Nothing tells except the instruction: with no bytes to copy, it traps
    // exactly if the end of what is to be copied is not in the segment.
    code.local_get(TO).local_get(FROM).local_get(LEN).i32_add().i32_const(0);
    bulk.emit(&mut code);
    steps_forward(&mut code, bulk);
    code.end();
    finish(&mut code, bulk);
    function
}

/// What is left, or everything: the original instruction, with its own checks and traps.
fn finish(code: &mut InstructionSink<'_>, bulk: Bulk) {
    code.local_get(TO).local_get(FROM).local_get(LEN);
    bulk.emit(code);
    code.end();
}

fn leave_if_short(code: &mut InstructionSink<'_>) {
    code.local_get(LEN).i32_const(STEP).i32_le_u().br_if(0);
}

/// Leaves if `start + LEN` is more than the memory has. In 64 bits, where neither overflows.
fn leave_if_beyond_memory(code: &mut InstructionSink<'_>, start: u32) {
    end_of(code, start);
    code.memory_size(0).i64_extend_i32_u().i64_const(16).i64_shl().i64_gt_u().br_if(0);
}

fn end_of(code: &mut InstructionSink<'_>, start: u32) {
    code.local_get(start).i64_extend_i32_u().local_get(LEN).i64_extend_i32_u().i64_add();
}

/// From the low end up, until at most a step is left, which begins at `TO`.
fn steps_forward(code: &mut InstructionSink<'_>, bulk: Bulk) {
    code.loop_(BlockType::Empty);
    code.local_get(TO).local_get(FROM).i32_const(STEP);
    bulk.emit(code);
    code.local_get(TO).i32_const(STEP).i32_add().local_set(TO);
    if bulk != Bulk::Fill {
        code.local_get(FROM).i32_const(STEP).i32_add().local_set(FROM);
    }
    code.local_get(LEN).i32_const(STEP).i32_sub().local_tee(LEN).i32_const(STEP).i32_gt_u().br_if(0);
    code.end();
}

/// From the high end down, until at most a step is left, which begins at `TO`.
fn steps_backward(code: &mut InstructionSink<'_>, bulk: Bulk) {
    code.loop_(BlockType::Empty);
    code.local_get(LEN).i32_const(STEP).i32_sub().local_set(LEN);
    code.local_get(TO).local_get(LEN).i32_add();
    code.local_get(FROM).local_get(LEN).i32_add();
    code.i32_const(STEP);
    bulk.emit(code);
    code.local_get(LEN).i32_const(STEP).i32_gt_u().br_if(0);
    code.end();
}
