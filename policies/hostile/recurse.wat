;; Calls itself until the native stack is used up.
(module
  (memory (export "memory") 4)
  (global $next (mut i32) (i32.const 65536))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    ;; Input goes to the second page, one block behind the other.
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  (func $deeper (param i64 i64 i64) (result i64)
    (i64.rotl
      (call $deeper
        (i64.add (local.get 0) (i64.const 1))
        (i64.mul (local.get 1) (local.get 0))
        (i64.xor (local.get 2) (local.get 1)))
      (local.get 2)))
  (func (export "decide") (param i32) (result i32)
    (i64.store (i32.const 0) (call $deeper (i64.const 0) (i64.const 3) (i64.const 5)))
    (i32.const 0)))
