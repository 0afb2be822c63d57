//! Rules that contradict each other.
//!
//! OPA's code finds that out wherever it is in a policy, calls a function with the place and the reason, and ends in a trap, which
//! tells nobody anything. Here it tells the adapter instead, and goes on as if what it computed were undefined; whatever comes of that, the
//! adapter makes a failure of the decision, with the place and the reason. So neither a contradiction nor what follows
//! from it is ever an answer.

use std::collections::BTreeSet;

use wasm_encoder::reencode::{Error, Reencode};
use wasm_encoder::{CodeSection, Instruction};
use wasmparser::{FuncType, FunctionBody, Operator, Parser, Payload, TypeRef, ValType};

/// What the adapter exports to be told: file, row, column, reason; file and reason are addresses of texts.
pub(super) const TOLD: &str = "rego_conflict";

/// Where in a module of OPA's a contradiction is found: the offsets of the calls that are followed by a trap.
#[derive(Default)]
pub(super) struct Conflicts {
    calls: BTreeSet<usize>,
}

impl Conflicts {
    /// Looks for what OPA's compiler writes there: four numbers, a call that takes them, and a trap.
    pub(super) fn of(module: &[u8]) -> Result<Self, wasmparser::Error> {
        let (mut types, mut functions) = (Vec::new(), Vec::new());
        let (mut found, mut body) = (Self::default(), 0_usize);
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::TypeSection(section) => {
                    for ty in section.into_iter_err_on_gc_types() {
                        types.push(ty?);
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        if let TypeRef::Func(ty) = import?.ty {
                            functions.push(ty);
                        }
                    }
                    body = functions.len();
                }
                Payload::FunctionSection(section) => {
                    for ty in section {
                        functions.push(ty?);
                    }
                }
                Payload::CodeSectionEntry(code) => {
                    if type_of(&types, &functions, body).is_some_and(|ty| ty.results() == [ValType::I32]) {
                        found.look(&code, |index| {
                            let ty = type_of(&types, &functions, usize::try_from(index).ok()?)?;
                            Some(ty.params() == [ValType::I32; 4] && ty.results().is_empty())
                        })?;
                    }
                    body = body.saturating_add(1);
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn look(
        &mut self,
        body: &FunctionBody<'_>,
        takes_four: impl Fn(u32) -> Option<bool>,
    ) -> Result<(), wasmparser::Error> {
        let mut operators = body.get_operators_reader()?;
        let (mut numbers, mut call) = (0_u32, None);
        while !operators.eof() {
            let (operator, at) = operators.read_with_offset()?;
            if let (Operator::Unreachable, Some(call)) = (&operator, call) {
                self.calls.insert(call);
            }
            call = match operator {
                Operator::Call { function_index } if numbers >= 4 => {
                    takes_four(function_index).unwrap_or(false).then_some(at)
                }
                _ => None,
            };
            let is_number = matches!(operator, Operator::I32Const { .. });
            numbers = if is_number { numbers.saturating_add(1) } else { 0 };
        }
        Ok(())
    }

    /// Puts a function behind the others as `shift` has it, with what is called in case of a contradiction in place of OPA's.
    pub(super) fn append<R: Reencode>(
        &self,
        code: &mut CodeSection,
        body: &FunctionBody<'_>,
        shift: &mut R,
        told: u32,
    ) -> Result<(), Error<R::Error>> {
        let mut function = shift.new_function_with_parsed_locals(body)?;
        let mut operators = body.get_operators_reader()?;
        while !operators.eof() {
            let at = operators.original_position();
            let instruction = shift.parse_instruction(&mut operators)?;
            if self.calls.contains(&at) {
                function.instruction(&Instruction::Call(told));
                function.instruction(&Instruction::I32Const(0));
                function.instruction(&Instruction::Return);
            } else {
                function.instruction(&instruction);
            }
        }
        code.function(&function);
        Ok(())
    }
}

fn type_of<'a>(types: &'a [FuncType], functions: &[u32], index: usize) -> Option<&'a FuncType> {
    types.get(usize::try_from(*functions.get(index)?).ok()?)
}
