;; Allows, with obligations that no proxy must ever act on. The first byte of an opaque input says which:
;;   s  status 999            z  status 0
;;   n  a name with a space   e  an empty name     N  a value with a NUL
;;   r  a header to remove whose name has a line break
;;   U  a value that is not UTF-8
;;   anything else: a value with a line break and a header of its own behind it
(module
  (memory (export "memory") 4)
  (global $next (mut i32) (i32.const 65536))
  (data (i32.const 2048) "x-good")                            ;; 6
  (data (i32.const 2064) "yes\r\nx-admin: true")              ;; 18
  (data (i32.const 2096) "x bad")                             ;; 5
  (data (i32.const 2112) "a\00b")                             ;; 3
  (data (i32.const 2128) "x-good\r\nx-admin")                 ;; 15
  (data (i32.const 2144) "caf\e9")                            ;; 4
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    ;; Input goes to the second page, one block behind the other.
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  ;; Sets one header.
  (func $header (param $name i32) (param $name-len i32) (param $value i32) (param $value-len i32) (result i32)
    (i32.store (i32.const 1040) (i32.const 4096)) ;; headers-set
    (i32.store (i32.const 1044) (i32.const 1))
    (i32.store (i32.const 4096) (local.get $name))
    (i32.store (i32.const 4100) (local.get $name-len))
    (i32.store (i32.const 4104) (local.get $value))
    (i32.store (i32.const 4108) (local.get $value-len))
    (i32.const 1020))
  (func $status (param i32) (result i32)
    (i32.store8 (i32.const 1036) (i32.const 1))
    (i32.store16 (i32.const 1038) (local.get 0))
    (i32.const 1020))
  (func (export "decide") (param $request i32) (result i32)
    (local $how i32)
    (local.set $how (i32.load8_u (i32.load (i32.add (local.get $request) (i32.const 12)))))
    (if (i32.eq (local.get $how) (i32.const 0x73)) ;; s
      (then (return (call $status (i32.const 999)))))
    (if (i32.eq (local.get $how) (i32.const 0x7a)) ;; z
      (then (return (call $status (i32.const 0)))))
    (if (i32.eq (local.get $how) (i32.const 0x6e)) ;; n
      (then (return (call $header (i32.const 2096) (i32.const 5) (i32.const 2048) (i32.const 6)))))
    (if (i32.eq (local.get $how) (i32.const 0x65)) ;; e
      (then (return (call $header (i32.const 2096) (i32.const 0) (i32.const 2048) (i32.const 6)))))
    (if (i32.eq (local.get $how) (i32.const 0x4e)) ;; N
      (then (return (call $header (i32.const 2048) (i32.const 6) (i32.const 2112) (i32.const 3)))))
    (if (i32.eq (local.get $how) (i32.const 0x55)) ;; U
      (then (return (call $header (i32.const 2048) (i32.const 6) (i32.const 2144) (i32.const 4)))))
    (if (i32.eq (local.get $how) (i32.const 0x72)) ;; r
      (then
        (i32.store (i32.const 1056) (i32.const 4096)) ;; headers-remove
        (i32.store (i32.const 1060) (i32.const 1))
        (i32.store (i32.const 4096) (i32.const 2128))
        (i32.store (i32.const 4100) (i32.const 15))
        (return (i32.const 1020))))
    (call $header (i32.const 2048) (i32.const 6) (i32.const 2064) (i32.const 18))))
