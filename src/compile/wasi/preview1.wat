;; WASI preview 1 for a policy: what a standard library needs to start, and nothing that reaches outside.
;;
;; It has no memory, no stack and no data of its own: some languages end when anybody allocates before they have started.
;; What it may use of the world are functions that return numbers or take a piece of the guest's own memory. Functions
;; that a guest does not call are left out, and with them what they import.
;;
;; VERSION becomes the version of the world, and what lines.wat has comes to where LINES is.
(module
  (import "portcullis:policy/clock@VERSION" "now" (func $now (result i64)))
  (import "portcullis:policy/random@VERSION" "get-u64" (func $random (result i64)))
  ;; 0 debug, 1 info, 2 warn
  (import "portcullis:policy/log@VERSION" "write" (func $log (param $level i32) (param $text i32) (param $len i32)))
  (import "env" "memory" (memory 0))

  ;; No arguments and no variables: none of them, and no bytes of them.
  (func (export "args_sizes_get") (param $count i32) (param $bytes i32) (result i32)
    (call $nothing (local.get $count) (local.get $bytes)))
  (func (export "args_get") (param i32 i32) (result i32) (i32.const 0))
  (func (export "environ_sizes_get") (param $count i32) (param $bytes i32) (result i32)
    (call $nothing (local.get $count) (local.get $bytes)))
  (func (export "environ_get") (param i32 i32) (result i32) (i32.const 0))
  (func $nothing (param $count i32) (param $bytes i32) (result i32)
    (i32.store (local.get $count) (i32.const 0))
    (i32.store (local.get $bytes) (i32.const 0))
    (i32.const 0))

  ;; Every clock is the time at which the request came in, and stands still.
  (func (export "clock_time_get") (param $clock i32) (param $precision i64) (param $time i32) (result i32)
    (if (i32.gt_u (local.get $clock) (i32.const 3)) (then (return (i32.const 28))))      ;; INVAL
    (i64.store (local.get $time) (call $now))
    (i32.const 0))
  (func (export "clock_res_get") (param $clock i32) (param $resolution i32) (result i32)
    (if (i32.gt_u (local.get $clock) (i32.const 3)) (then (return (i32.const 28))))      ;; INVAL
    (i64.store (local.get $resolution) (i64.const 1))
    (i32.const 0))

  ;; From the request's seed.
  (func (export "random_get") (param $at i32) (param $len i32) (result i32)
    (local $bits i64)
    (block $done
      (loop $eight
        (br_if $done (i32.lt_u (local.get $len) (i32.const 8)))
        (i64.store align=1 (local.get $at) (call $random))
        (local.set $at (i32.add (local.get $at) (i32.const 8)))
        (local.set $len (i32.sub (local.get $len) (i32.const 8)))
        (br $eight)))
    (if (i32.eqz (local.get $len)) (then (return (i32.const 0))))
    (local.set $bits (call $random))
    (loop $one
      (i64.store8 (local.get $at) (local.get $bits))
      (local.set $bits (i64.shr_u (local.get $bits) (i64.const 8)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $one (local.tee $len (i32.sub (local.get $len) (i32.const 1)))))
    (i32.const 0))

  ;; Standard output and standard error are lines of log; there is no other file.
  (func (export "fd_write") (param $fd i32) (param $pieces i32) (param $count i32) (param $written i32) (result i32)
    (local $sum i32)
    (local $len i32)
    (if (i32.gt_u (i32.sub (local.get $fd) (i32.const 1)) (i32.const 1)) (then (return (i32.const 8))))  ;; BADF
    (block $done
      (loop $piece
        (br_if $done (i32.eqz (local.get $count)))
        (local.set $len (i32.load offset=4 (local.get $pieces)))
        ;; The descriptor is the level: 1 info, 2 warn.
        (call $lines (local.get $fd) (i32.load (local.get $pieces)) (local.get $len))
        (local.set $sum (i32.add (local.get $sum) (local.get $len)))
        (local.set $pieces (i32.add (local.get $pieces) (i32.const 8)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $piece)))
    (i32.store (local.get $written) (local.get $sum))
    (i32.const 0))
  ;; LINES

  ;; Standard input is at its end.
  (func (export "fd_read") (param $fd i32) (param $pieces i32) (param $count i32) (param $read i32) (result i32)
    (if (local.get $fd) (then (return (i32.const 8))))                                   ;; BADF
    (i32.store (local.get $read) (i32.const 0))
    (i32.const 0))
  ;; The three are devices that cannot be looked at more closely; no other descriptor was ever opened.
  (func $standard (param $fd i32) (param $errno i32) (result i32)
    (select (local.get $errno) (i32.const 8) (i32.lt_u (local.get $fd) (i32.const 3))))
  (func (export "fd_fdstat_get") (param $fd i32) (param $stat i32) (result i32)
    (if (i32.gt_u (local.get $fd) (i32.const 2)) (then (return (i32.const 8))))
    (i64.store (local.get $stat) (i64.const 2))                                          ;; a character device
    (i64.store offset=8 (local.get $stat) (select (i64.const 0x40) (i64.const 0x2) (local.get $fd)))
    (i64.store offset=16 (local.get $stat) (i64.const 0))
    (i32.const 0))
  (func (export "fd_filestat_get") (param $fd i32) (param $stat i32) (result i32)
    (if (i32.gt_u (local.get $fd) (i32.const 2)) (then (return (i32.const 8))))
    (i64.store (local.get $stat) (i64.const 0))
    (i64.store offset=8 (local.get $stat) (i64.const 0))
    (i64.store offset=16 (local.get $stat) (i64.const 2))                                ;; a character device
    (i64.store offset=24 (local.get $stat) (i64.const 1))                                ;; one link
    (i64.store offset=32 (local.get $stat) (i64.const 0))
    (i64.store offset=40 (local.get $stat) (i64.const 0))
    (i64.store offset=48 (local.get $stat) (i64.const 0))
    (i64.store offset=56 (local.get $stat) (i64.const 0))
    (i32.const 0))
  (func (export "fd_close") (param $fd i32) (result i32) (call $standard (local.get $fd) (i32.const 0)))
  (func (export "fd_sync") (param $fd i32) (result i32) (call $standard (local.get $fd) (i32.const 0)))
  (func (export "fd_datasync") (param $fd i32) (result i32) (call $standard (local.get $fd) (i32.const 0)))
  (func (export "fd_seek") (param $fd i32) (param i64 i32 i32) (result i32)
    (call $standard (local.get $fd) (i32.const 70)))                                     ;; SPIPE
  (func (export "fd_tell") (param $fd i32) (param i32) (result i32)
    (call $standard (local.get $fd) (i32.const 70)))
  (func (export "fd_pread") (param $fd i32) (param i32 i32 i64 i32) (result i32)
    (call $standard (local.get $fd) (i32.const 70)))
  (func (export "fd_pwrite") (param $fd i32) (param i32 i32 i64 i32) (result i32)
    (call $standard (local.get $fd) (i32.const 70)))
  (func (export "fd_fdstat_set_flags") (param $fd i32) (param i32) (result i32)
    (call $standard (local.get $fd) (i32.const 58)))                                     ;; NOTSUP
  (func (export "fd_fdstat_set_rights") (param $fd i32) (param i64 i64) (result i32)
    (call $standard (local.get $fd) (i32.const 58)))
  (func (export "fd_filestat_set_size") (param $fd i32) (param i64) (result i32)
    (call $standard (local.get $fd) (i32.const 58)))
  (func (export "fd_filestat_set_times") (param $fd i32) (param i64 i64 i32) (result i32)
    (call $standard (local.get $fd) (i32.const 58)))
  (func (export "fd_advise") (param $fd i32) (param i64 i64 i32) (result i32)
    (call $standard (local.get $fd) (i32.const 58)))
  (func (export "fd_allocate") (param $fd i32) (param i64 i64) (result i32)
    (call $standard (local.get $fd) (i32.const 58)))
  (func (export "fd_readdir") (param $fd i32) (param i32 i32 i64 i32) (result i32)
    (call $standard (local.get $fd) (i32.const 54)))                                     ;; NOTDIR
  (func (export "fd_renumber") (param $fd i32) (param i32) (result i32)
    (call $standard (local.get $fd) (i32.const 58)))

  ;; No directory is open from the start: BADF ends the search for them.
  (func (export "fd_prestat_get") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_prestat_dir_name") (param i32 i32 i32) (result i32) (i32.const 8))
  ;; NOTCAPABLE, whatever the path.
  (func (export "path_create_directory") (param i32 i32 i32) (result i32) (i32.const 76))
  (func (export "path_filestat_get") (param i32 i32 i32 i32 i32) (result i32) (i32.const 76))
  (func (export "path_filestat_set_times") (param i32 i32 i32 i32 i64 i64 i32) (result i32) (i32.const 76))
  (func (export "path_link") (param i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 76))
  (func (export "path_open") (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32) (i32.const 76))
  (func (export "path_readlink") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 76))
  (func (export "path_remove_directory") (param i32 i32 i32) (result i32) (i32.const 76))
  (func (export "path_rename") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 76))
  (func (export "path_symlink") (param i32 i32 i32 i32 i32) (result i32) (i32.const 76))
  (func (export "path_unlink_file") (param i32 i32 i32) (result i32) (i32.const 76))
  (func (export "sock_accept") (param i32 i32 i32) (result i32) (i32.const 76))
  (func (export "sock_recv") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 76))
  (func (export "sock_send") (param i32 i32 i32 i32 i32) (result i32) (i32.const 76))
  (func (export "sock_shutdown") (param i32 i32) (result i32) (i32.const 76))

  ;; Nothing ever becomes ready, and time does not pass: who waits would wait for ever. NOTSUP.
  (func (export "poll_oneoff") (param i32 i32 i32 i32) (result i32) (i32.const 58))
  (func (export "sched_yield") (result i32) (i32.const 0))
  ;; A policy ends by answering.
  (func (export "proc_exit") (param i32) (unreachable))
  (func (export "proc_raise") (param i32) (result i32) (unreachable)))
