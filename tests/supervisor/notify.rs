//! What the service manager is told.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::Test;
use crate::service::{As, Site};

pub(crate) const TESTS: &[Test] =
    &[("the_service_manager_is_told_of_each_step", the_service_manager_is_told_of_each_step)];

fn the_service_manager_is_told_of_each_step() {
    let site = Site::new(As::Caller);
    site.write(&site.sound("10s", "").replace("drain", "require_distinct_uids = false\ndrain"));
    let manager = UnixDatagram::bind(site.path("notify")).expect("bind");
    manager.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    let told = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = manager.recv(&mut buffer).expect(wanted);
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.starts_with(wanted) {
                return;
            }
            assert!(
                message.starts_with("STATUS=") || message.starts_with("WATCHDOG="),
                "{message} before {wanted}"
            );
        }
    };
    let mut command = site.command();
    // A third of it lies between two messages. Nothing here reads them while it waits for other things, the kernel keeps about
    // ten, and the supervisor drops what there is no room for.
    command.env("NOTIFY_SOCKET", site.path("notify")).env("WATCHDOG_USEC", "6000000");
    let mut service = site.start_with(command);
    told("READY=1");
    told("WATCHDOG=1");
    told("WATCHDOG=1");
    service.wait_until_all_serve();
    service.signal(Signal::SIGHUP);
    told("RELOADING=1\nMONOTONIC_USEC=");
    told("READY=1");
    service.signal(Signal::SIGTERM);
    told("STOPPING=1");
    let (status, said) = service.end();
    assert_eq!(status.code(), Some(0), "{said}");
}
