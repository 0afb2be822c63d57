//! When the supervisor is gone, so is everybody, by the kernel's hand and not by their own good will.

use nix::sys::signal::{Signal, kill};

use crate::scene::{self, As, gone, processes, wait_until_gone};
use crate::standin::StandIn;
use crate::support::FIRST_CLASS_UID;

pub(crate) fn nobody_outlives_the_supervisor_whoever_started_it() {
    for starter in [As::Root, As::Ambient] {
        for stopped in [false, true] {
            let service = scene::start(scene::site_of(starter));
            let children: Vec<_> =
                processes(&service).into_iter().filter(|process| process.pid != service.pid()).collect();
            assert!(children.len() >= 3, "{children:?}");
            // The control: stopped as they are, and nobody's child.
            let stand_in = StandIn::start(FIRST_CLASS_UID);
            if stopped {
                // First, or it would end those that do not answer.
                service.suspend();
                let all = children.iter().map(|process| process.pid).chain([stand_in.pid()]);
                all.for_each(|pid| kill(pid, Signal::SIGSTOP).expect("stop"));
            }
            kill(service.pid(), Signal::SIGKILL).expect("kill");
            children.iter().for_each(|process| wait_until_gone(process.pid));
            assert!(!gone(stand_in.pid()));
        }
    }
}
