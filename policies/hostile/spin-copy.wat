;; Copies one half of all memory it can get, 4 MiB at most, to the other with one instruction, for ever.
(module
  (memory (export "memory") 4)
  (global $next (mut i32) (i32.const 65536))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    ;; Input goes to the second page, one block behind the other.
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  (func (export "decide") (param i32) (result i32)
    (local $half i32)
    (loop $more
      (br_if $more
        (i32.and
          (i32.lt_u (memory.size) (i32.const 64))
          (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))))
    (local.set $half (i32.mul (memory.size) (i32.const 32768)))
    (loop $forever
      (memory.copy (local.get $half) (i32.const 0) (local.get $half))
      (br $forever))
    (unreachable)))
