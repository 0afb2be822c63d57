;; Lets GET through and nothing else, and says in a line of log what it saw. Of the world that policies had first: such ones
;; go on deciding as they are, beside those of today's.
(module
  (import "portcullis:policy/log@0.1.0" "write" (func $log (param i32 i32 i32)))
  (memory (export "memory") 2)
  (data (i32.const 16) "read only")
  (global $free (mut i32) (i32.const 4096))
  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
    (global.set $free (i32.add (local.get $at) (local.get $size)))
    (local.get $at))
  ;; decide: func(request: request) -> decision. 68 bytes of zero are a decision: allow, with nothing else to do.
  (func (export "decide") (param $request i32) (result i32)
    (if (i32.eqz (i32.load8_u (local.get $request)))                  ;; an HTTP request: its method
      (then
        (call $log (i32.const 1) (i32.load offset=4 (local.get $request)) (i32.load offset=8 (local.get $request)))
        (if (i32.eq (i32.load offset=8 (local.get $request)) (i32.const 3))
          (then (if (i32.eq (i32.const 0x544547)                      ;; "GET", backwards
                            (i32.and (i32.load (i32.load offset=4 (local.get $request))) (i32.const 0xffffff)))
            (then (return (i32.const 1024))))))))
    (i32.store8  (i32.const 1024) (i32.const 1))                      ;; deny,
    (i32.store   (i32.const 1028) (i32.const 16))                     ;; for this reason,
    (i32.store   (i32.const 1032) (i32.const 9))                      ;; which is so long,
    (i32.store8  (i32.const 1036) (i32.const 1))                      ;; with a status:
    (i32.store16 (i32.const 1038) (i32.const 405))
    (i32.const 1024)))
