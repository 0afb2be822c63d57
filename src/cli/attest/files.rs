//! Files the service stands on: its sockets, caches, state, configuration, trust policy and programs. What is in the store is
//! nobody's to trust, so whose that is does not matter.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::Expectations;
use super::report::{Area, Findings, Verdict};
use super::view::{Unseen, shown};
use crate::sandbox::Role;
use crate::supervisor::config::{Config, Place};

/// Bits that let somebody other than the owner change a file.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;
/// See `listen.rs` of the supervisor: who gets an answer is decided by UID.
const OPERATOR_SOCKET_MODE: u32 = 0o666;

/// Compares owners and modes with the configuration, and says what a reload would say of it now.
pub(super) fn check(expected: &Expectations, findings: &mut Findings) {
    if let Some(directory) = expected.programs() {
        for role in Role::ALL {
            let path = directory.join(format!("portcullis-{role}"));
            // No part of the service, which does without. Where there is one, root runs it.
            if role == Role::Fetcher && matches!(look(&path), Err(Unseen::Gone)) {
                continue;
            }
            only_trusted_write(&format!("program {role}"), &path, expected, findings);
        }
        above(&directory, expected, findings);
    } else {
        findings.add(
            Area::Files,
            "programs",
            Verdict::hidden("where the supervisor's program is cannot be seen"),
        );
    }
    let configuration = match &expected.configuration {
        Ok(configuration) => configuration,
        Err(verdict) => {
            findings.add(Area::Files, "configuration", verdict.clone());
            findings.add(
                Area::Files,
                "sockets, caches, state, trust policy",
                Verdict::hidden(expected.why_no_configuration()),
            );
            return;
        }
    };
    only_trusted_write("configuration", &expected.configuration_path, expected, findings);
    findings.add(Area::Files, "what a reload would say", configuration.complaints.clone());
    let config = &configuration.config;
    only_trusted_write("trust policy", &config.service.trust.path, expected, findings);
    if let Some(tenants) = &config.service.tenants {
        only_trusted_write("tenants", tenants, expected, findings);
    }
    if let Some(secret) = &config.registry.secret {
        only_trusted_write("secret", &secret.path, expected, findings);
    }
    socket("client socket", &config.service.socket, config.service.socket_mode, expected, findings);
    socket("operator socket", &config.service.operator_socket, OPERATOR_SOCKET_MODE, expected, findings);
    if let Some(telemetry) = &config.telemetry {
        socket("telemetry's socket", &telemetry.socket, telemetry.socket_mode, expected, findings);
    }
    for one in config.gateway.iter().flat_map(|gateway| &gateway.listeners) {
        if let Place::Unix(path, mode) = &one.place {
            let what = format!("socket of gateway.listener.{}", one.listener.name);
            socket(&what, path, *mode, expected, findings);
        }
    }
    own_directories(config, findings);
}

/// The supervisor's own or root's, and nobody else may write it.
fn only_trusted_write(what: &str, path: &Path, expected: &Expectations, findings: &mut Findings) {
    let wanted = format!("uid {}, others may not write", owners(expected));
    let verdict = match look(path) {
        Ok(file) if !is_trusted(&file, expected) || file.mode() & OTHERS_WRITE != 0 => {
            Verdict::different(&said(&file), &wanted)
        }
        Ok(file) => Verdict::ok(&said(&file)),
        Err(unseen) => Verdict::unseen(&unseen, &wanted),
    };
    findings.add(Area::Files, format!("{what} {}", shown(path)), verdict);
}

/// Who may write a directory above a program may put another there, for the next start.
fn above(directory: &Path, expected: &Expectations, findings: &mut Findings) {
    let wanted = "others may not write";
    let any = directory.join("any");
    let verdict = match any.ancestors().skip(1).find_map(|above| replaceable(above, expected)) {
        None => Verdict::ok(wanted),
        Some(Ok(found)) => Verdict::different(&found, &format!("uid {}, {wanted}", owners(expected))),
        Some(Err(unseen)) => Verdict::unseen(&unseen, wanted),
    };
    findings.add(Area::Files, format!("programs' directory {} and above", shown(directory)), verdict);
}

/// Why others may replace what is in this directory: as the configuration's check of what is above a file, which takes
/// a directory's sticky bit for enough, since what is there is root's or the supervisor's own.
fn replaceable(directory: &Path, expected: &Expectations) -> Option<Result<String, Unseen>> {
    match look(directory) {
        Ok(file) if !is_trusted(&file, expected) => {
            Some(Ok(format!("{}: {}", shown(directory), said(&file))))
        }
        Ok(file) if file.mode() & OTHERS_WRITE != 0 && file.mode() & STICKY == 0 => {
            Some(Ok(format!("{}: {}", shown(directory), said(&file))))
        }
        Ok(_) => None,
        Err(unseen) => Some(Err(unseen)),
    }
}

fn socket(what: &str, path: &Path, mode: u32, expected: &Expectations, findings: &mut Findings) {
    // One that systemd made is root's.
    let wanted = format!("a socket of uid {}, mode {mode:04o}", owners(expected));
    let looked = path.symlink_metadata().map_err(|error| Unseen::of(path, &error));
    let verdict = match looked {
        Ok(file) if !file.file_type().is_socket() => Verdict::different("no socket", &wanted),
        Ok(file) if !is_trusted(&file, expected) || file.mode() & 0o7777 != mode => {
            Verdict::different(&said(&file), &wanted)
        }
        Ok(file) => Verdict::ok(&said(&file)),
        Err(unseen) => Verdict::unseen(&unseen, &wanted),
    };
    findings.add(Area::Files, format!("{what} {}", shown(path)), verdict);
}

/// Owned by who runs the class's workers, and nobody else so much as looks into it.
fn own_directories(config: &Config, findings: &mut Findings) {
    let caches = config.classes.iter().map(|class| ("cache", &class.cache, class.identity.uid));
    let state = ("state", &config.service.state, config.registry.identity.uid);
    for (what, path, uid) in caches.chain([state]) {
        let wanted = format!("a directory of uid {uid}, mode 0700");
        let verdict = match look(path) {
            Ok(file) if !file.is_dir() || file.uid() != uid || file.mode() & 0o7777 != 0o700 => {
                Verdict::different(&said(&file), &wanted)
            }
            Ok(file) => Verdict::ok(&said(&file)),
            Err(unseen) => Verdict::unseen(&unseen, &wanted),
        };
        findings.add(Area::Files, format!("{what} {}", shown(path)), verdict);
    }
}

fn look(path: &Path) -> Result<Metadata, Unseen> {
    path.metadata().map_err(|error: io::Error| Unseen::of(path, &error))
}

fn is_trusted(file: &Metadata, expected: &Expectations) -> bool {
    file.uid() == 0 || file.uid() == expected.supervisor_uid
}

fn owners(expected: &Expectations) -> String {
    match expected.supervisor_uid {
        0 => "0".to_owned(),
        uid => format!("{uid} or 0"),
    }
}

fn said(file: &Metadata) -> String {
    format!("uid {}, mode {:04o}", file.uid(), file.mode() & 0o7777)
}
