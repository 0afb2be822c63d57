;; Answers with a decision that points where nothing is. The first byte of an opaque input says how:
;;   p  the decision itself lies beyond memory          a  the decision is not aligned
;;   r  the reason begins in memory and ends beyond it  h  a list of 2^32 - 1 headers
;;   w  a pointer and a length whose sum wraps around   n  a header whose name lies beyond memory
;;   u  the reason is not UTF-8                         d  a verdict that there is not
;;   s  a cache scope that there is not                 U  a header whose name is not UTF-8
;;   o  neither a decision nor a failure                f  a failure whose reason ends beyond memory
;;   anything else  as r
(module
  (memory (export "memory") 4)
  (global $next (mut i32) (i32.const 65536))
  (data (i32.const 2048) "\ff\fe\c0")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    ;; Input goes to the second page, one block behind the other.
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  ;; Offsets in a decision: 0 verdict, 4 reason, 16 headers-set, 60 ttl, 64 scope.
  (func (export "decide") (param $request i32) (result i32)
    (local $how i32)
    (local.set $how (i32.load8_u (i32.load (i32.add (local.get $request) (i32.const 12)))))
    (if (i32.eq (local.get $how) (i32.const 0x70)) ;; p
      (then (return (i32.const 0xfffffff0))))
    (if (i32.eq (local.get $how) (i32.const 0x61)) ;; a
      (then (return (i32.const 1025))))
    (if (i32.eq (local.get $how) (i32.const 0x68)) ;; h
      (then
        (i32.store (i32.const 1040) (i32.const 1024))
        (i32.store (i32.const 1044) (i32.const -1))
        (return (i32.const 1020))))
    (if (i32.eq (local.get $how) (i32.const 0x6e)) ;; n
      (then
        (i32.store (i32.const 1040) (i32.const 4096))
        (i32.store (i32.const 1044) (i32.const 1))
        (i32.store (i32.const 4096) (i32.const 0x7fffff00))
        (i32.store (i32.const 4100) (i32.const 16))
        (return (i32.const 1020))))
    (if (i32.eq (local.get $how) (i32.const 0x64)) ;; d
      (then
        (i32.store8 (i32.const 1024) (i32.const 2))
        (return (i32.const 1020))))
    (if (i32.eq (local.get $how) (i32.const 0x73)) ;; s
      (then
        (i32.store8 (i32.const 1088) (i32.const 3))
        (return (i32.const 1020))))
    (if (i32.eq (local.get $how) (i32.const 0x55)) ;; U
      (then
        (i32.store (i32.const 1040) (i32.const 4096))
        (i32.store (i32.const 1044) (i32.const 1))
        (i32.store (i32.const 4096) (i32.const 2048))
        (i32.store (i32.const 4100) (i32.const 3))
        (return (i32.const 1020))))
    (if (i32.eq (local.get $how) (i32.const 0x6f)) ;; o
      (then
        (i32.store8 (i32.const 1020) (i32.const 2))
        (return (i32.const 1020))))
    (if (i32.eq (local.get $how) (i32.const 0x66)) ;; f
      (then
        (i32.store8 (i32.const 1020) (i32.const 1))
        (i32.store (i32.const 1024) (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 2)))
        (i32.store (i32.const 1028) (i32.const 3))
        (return (i32.const 1020))))
    (i32.store8 (i32.const 1024) (i32.const 1))
    (if (i32.eq (local.get $how) (i32.const 0x75)) ;; u
      (then
        (i32.store (i32.const 1028) (i32.const 2048))
        (i32.store (i32.const 1032) (i32.const 3))
        (return (i32.const 1020))))
    (if (i32.eq (local.get $how) (i32.const 0x77)) ;; w
      (then
        (i32.store (i32.const 1028) (i32.const 0xffffff00))
        (i32.store (i32.const 1032) (i32.const 0x200))
        (return (i32.const 1020))))
    (i32.store (i32.const 1028) (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 16)))
    (i32.store (i32.const 1032) (i32.const 17))
    (i32.const 1020)))
