;; Answers with more than it has. The first byte of an opaque input says how:
;;   b  a body of 3 MiB
;;   r  a reason of 3 MiB
;;   anything else: 300,000 header names to remove, 2.4 MB of pointers that all point at the same 1 MiB: 300 GB for a host
;;   that copies before it counts
(module
  (memory (export "memory") 56)
  (global $next (mut i32) (i32.const 65536))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    ;; Input goes to the second page, one block behind the other.
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  ;; Offsets in a decision: 0 verdict, 4 reason, 32 headers-remove, 40 body.
  (func (export "decide") (param $request i32) (result i32)
    (local $how i32) (local $at i32)
    (local.set $how (i32.load8_u (i32.load (i32.add (local.get $request) (i32.const 12)))))
    (if (i32.eq (local.get $how) (i32.const 0x62)) ;; b
      (then
        (i32.store8 (i32.const 1064) (i32.const 1))
        (i32.store (i32.const 1068) (i32.const 0x20000))
        (i32.store (i32.const 1072) (i32.const 0x300000))
        (return (i32.const 1020))))
    (if (i32.eq (local.get $how) (i32.const 0x72)) ;; r
      (then
        (i32.store8 (i32.const 1024) (i32.const 1))
        (i32.store (i32.const 1028) (i32.const 0x20000))
        (i32.store (i32.const 1032) (i32.const 0x300000))
        (memory.fill (i32.const 0x20000) (i32.const 0x78) (i32.const 0x300000))
        (return (i32.const 1020))))
    (memory.fill (i32.const 0x20000) (i32.const 0x78) (i32.const 0x100000))
    (local.set $at (i32.const 0x120000))
    (loop $each
      (i32.store (local.get $at) (i32.const 0x20000))
      (i32.store offset=4 (local.get $at) (i32.const 0x100000))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $each (i32.lt_u (local.get $at) (i32.const 3579648)))) ;; 0x120000 + 300,000 * 8
    (i32.store (i32.const 1056) (i32.const 0x120000))
    (i32.store (i32.const 1060) (i32.const 300000))
    (i32.const 1020)))
