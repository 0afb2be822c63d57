//! One function body, made interruptible everywhere.
//!
//! The engine looks at the deadline where a function begins and where a loop begins, and nowhere else. Between two such
//! places a guest cannot be stopped. Two things make that stretch long, and both are taken away here: bulk memory
//! instructions, which become calls of helpers that work in steps ([`super::bulk`]), and straight code without loops,
//! into which empty loops are put, so that no path executes more than [`STRETCH`] bytes of code without a look.
//!
//! Bulk table instructions stay as they are: a policy's tables are limited to a few thousand elements, so each takes
//! less than a step; a look comes before each.

use wasmparser::{Error, FunctionBody, Operator};

use super::bulk::{Bulk, Helpers};

/// Most code, in bytes, that runs between two looks at the deadline: well under 100 microseconds of it.
const STRETCH: u64 = 4096;
/// Bulk instructions with a constant length up to this many bytes stay as they are.
const SMALL: i32 = 1024;
/// Bytes that a bulk instruction moves in the time a byte of code takes, roughly.
const MOVED_PER_CODE: u64 = 16;

/// `loop end`: does nothing, and is a place where the engine looks at the deadline.
const LOOK: [u8; 3] = [0x03, 0x40, 0x0b];
const CALL: u8 = 0x10;

/// Copies a body that has been validated, with its bulk memory instructions replaced and enough looks put in.
pub(super) fn body(body: &FunctionBody<'_>, helpers: &mut Helpers) -> Result<Vec<u8>, Error> {
    let bytes = body.as_bytes();
    let base = body.range().start;
    let between = |from: usize, to: usize| bytes.get(from..to).unwrap_or_default();

    let mut rewritten = Vec::with_capacity(bytes.len().saturating_add(64));
    let mut copied = 0;
    let mut reader = body.get_operators_reader()?;
    let mut path = Path::new();
    // The operand on top of the stack, if the instruction before put a constant there.
    let mut constant = None;
    while !reader.eof() {
        let (operator, at) = reader.read_with_offset()?;
        let (start, end) = (at.saturating_sub(base), reader.original_position().saturating_sub(base));
        let bulk = Bulk::of(&operator);
        let small = constant.filter(|len| (0..=SMALL).contains(len)).and_then(|len| u64::try_from(len).ok());

        let mut cost = u64::try_from(end.saturating_sub(start)).unwrap_or(STRETCH);
        cost = cost.saturating_add(match (bulk, small) {
            (Some(_), Some(len)) => len / MOVED_PER_CODE,
            _ if is_slow(&operator) => STRETCH,
            _ => 0,
        });
        if path.step(&operator, cost) {
            rewritten.extend_from_slice(between(copied, start));
            rewritten.extend_from_slice(&LOOK);
            copied = start;
        }
        if let (Some(bulk), None) = (bulk, small)
            && let Some(function) = helpers.function(bulk)
        {
            rewritten.extend_from_slice(between(copied, start));
            rewritten.push(CALL);
            wasm_encoder::Encode::encode(&function, &mut rewritten);
            copied = end;
        }
        constant = if let Operator::I32Const { value } = operator { Some(value) } else { None };
    }
    rewritten.extend_from_slice(bytes.get(copied..).unwrap_or_default());
    Ok(rewritten)
}

/// Instructions that do more than a few bytes of code do: up to a table's limit of elements, or a system call.
fn is_slow(operator: &Operator<'_>) -> bool {
    matches!(
        operator,
        Operator::TableInit { .. }
            | Operator::TableCopy { .. }
            | Operator::TableFill { .. }
            | Operator::TableGrow { .. }
            | Operator::MemoryGrow { .. }
    )
}

/// How much code the longest path to here has executed since the last look, over every way the branches can go.
struct Path {
    since: u64,
    blocks: Vec<Block>,
}

/// An open block and the longest paths that come to its end by other ways than falling into it.
#[derive(Default)]
struct Block {
    branches: u64,
    /// The path that skips what comes first: from an `if` to its `else` or, without one, to its end.
    skips: Option<u64>,
    is_loop: bool,
}

impl Path {
    fn new() -> Self {
        Self { since: 0, blocks: vec![Block::default()] }
    }

    /// Accounts for an instruction. True if there has to be a look before it.
    fn step(&mut self, operator: &Operator<'_>, cost: u64) -> bool {
        let look = self.since.saturating_add(cost) > STRETCH && self.since > 0;
        self.since = if look { cost } else { self.since.saturating_add(cost) };
        match operator {
            Operator::Block { .. } => self.blocks.push(Block::default()),
            Operator::Loop { .. } => {
                // The engine looks here by itself, however it is reached.
                self.since = 0;
                self.blocks.push(Block { is_loop: true, ..Block::default() });
            }
            Operator::If { .. } => {
                self.blocks.push(Block { skips: Some(self.since), ..Block::default() });
            }
            Operator::Else => {
                if let Some(block) = self.blocks.last_mut() {
                    block.branches = block.branches.max(self.since);
                    self.since = block.skips.take().unwrap_or(self.since);
                }
            }
            Operator::End => {
                if let Some(block) = self.blocks.pop() {
                    self.since = self.since.max(block.branches).max(block.skips.unwrap_or(0));
                }
            }
            Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => {
                self.branch(*relative_depth);
            }
            Operator::BrTable { targets } => {
                self.branch(targets.default());
                // Validated before: every target can be read.
                targets.targets().flatten().for_each(|depth| self.branch(depth));
            }
            _ => {}
        }
        look
    }

    fn branch(&mut self, depth: u32) {
        let since = self.since;
        let index = usize::try_from(depth).ok().and_then(|depth| self.blocks.len().checked_sub(depth + 1));
        if let Some(block) = index.and_then(|index| self.blocks.get_mut(index))
            && !block.is_loop
        {
            block.branches = block.branches.max(since);
        }
    }
}
