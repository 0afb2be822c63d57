//! Policies that take a compiler longer, or more memory, than they look.

use portcullis::compile::componentize;
use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, DataSection, ExportKind, ExportSection, Function, FunctionSection,
    MemorySection, MemoryType, Module, TypeSection, ValType,
};

/// A policy that always allows, and a function with that body which nobody calls.
pub(crate) fn policy(body: Function, data: &[u8], pages: u64) -> Vec<u8> {
    componentize(&module(body, data, pages)).unwrap()
}

pub(crate) fn module(body: Function, data: &[u8], pages: u64) -> Vec<u8> {
    let mut module = Module::new();
    let mut types = TypeSection::new();
    types.ty().function([ValType::I32; 4], [ValType::I32]);
    types.ty().function([ValType::I32], [ValType::I32]);
    module.section(&types);
    let mut functions = FunctionSection::new();
    functions.function(0).function(1).function(1);
    module.section(&functions);
    let mut memories = MemorySection::new();
    memories.memory(MemoryType {
        minimum: pages,
        maximum: None,
        memory64: false,
        shared: false,
        page_size_log2: None,
    });
    module.section(&memories);
    let mut exports = ExportSection::new();
    exports
        .export("memory", ExportKind::Memory, 0)
        .export("cabi_realloc", ExportKind::Func, 0)
        .export("decide", ExportKind::Func, 1)
        .export("bomb", ExportKind::Func, 2);
    module.section(&exports);
    let constant = |value| {
        let mut function = Function::new([]);
        function.instructions().i32_const(value).end();
        function
    };
    let mut code = CodeSection::new();
    code.function(&constant(1024)).function(&constant(512)).function(&body);
    module.section(&code);
    let mut segments = DataSection::new();
    segments.active(0, &ConstExpr::i32_const(4096), data.iter().copied());
    module.section(&segments);
    module.finish()
}

/// Loops within loops, each with all variables alive across its edges: the work grows with the product of both.
pub(crate) fn alive(variables: u32, loops: u32) -> Function {
    let mut function = Function::new([(variables, ValType::I32)]);
    let mut code = function.instructions();
    for _ in 0..loops {
        code.loop_(BlockType::Empty);
        for variable in (1..=variables).step_by(7) {
            code.local_get(variable).local_get(0).i32_add().local_set(variable);
        }
        code.local_get(0).br_if(0);
    }
    for _ in 0..loops {
        code.end();
    }
    code.local_get(1).end();
    function
}

pub(crate) fn nested(depth: u32) -> Function {
    let mut function = Function::new([]);
    let mut code = function.instructions();
    (0..depth).for_each(|_| {
        code.block(BlockType::Empty);
    });
    (0..depth).for_each(|_| {
        code.local_get(0).br_if(0).end();
    });
    code.local_get(0).end();
    function
}

pub(crate) fn long(instructions: u32) -> Function {
    let mut function = Function::new([(64, ValType::I32)]);
    let mut code = function.instructions();
    for n in 0..instructions {
        code.local_get(n % 64).local_get(n * 7 % 64).i32_add().local_set(n * 13 % 64);
    }
    code.local_get(1).end();
    function
}
