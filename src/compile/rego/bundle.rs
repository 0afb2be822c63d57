//! What `opa build` writes: a gzipped tar with the module and its data, or the module by itself.

use std::io::Read;

use flate2::read::GzDecoder;

use super::{RegoError, inspect};

/// Most of `data.json` that goes into a snapshot, bytes. It grows fifteen times when it is parsed, and a memory has an end.
pub const DATA_MAX: usize = 50 << 20;
/// Largest module of OPA, component or bundle that is read, bytes.
pub const MODULE_MAX: usize = 64 << 20;
/// Most that a bundle may have inside, bytes: what is not ours is skipped, but it has to be unpacked for that.
const BUNDLE_MAX: u64 = 256 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A policy that OPA compiled, and its data.
#[derive(Debug, Clone)]
pub struct Rego {
    pub module: Vec<u8>,
    /// JSON: the document `data`. Empty is none.
    pub data: Vec<u8>,
}

impl Rego {
    /// True for what only OPA makes: a gzipped bundle, or a module that says which of OPA's ABIs it has.
    #[must_use]
    pub fn is_of_opa(bytes: &[u8]) -> bool {
        bytes.starts_with(&GZIP) || inspect::has_abi(bytes)
    }

    /// Reads a bundle, or a bare module with the data beside it. Data of the bundle and data beside it are not mixed.
    ///
    /// # Errors
    /// If it is neither, or too large.
    pub fn read(bytes: &[u8], data: Option<&[u8]>) -> Result<Self, RegoError> {
        let mut policy = if bytes.starts_with(&GZIP) {
            unpack(bytes)?
        } else {
            Self { module: bytes.to_vec(), data: Vec::new() }
        };
        if let Some(data) = data {
            policy.data = data.to_vec();
        }
        if policy.data.len() > DATA_MAX {
            return Err(RegoError::TooMuchData { len: policy.data.len() });
        }
        Ok(policy)
    }
}

fn unpack(bytes: &[u8]) -> Result<Rego, RegoError> {
    let failed = |error: std::io::Error| RegoError::Bundle(error.to_string());
    let mut archive = tar::Archive::new(GzDecoder::new(bytes).take(BUNDLE_MAX));
    let (mut module, mut data) = (None, None);
    for entry in archive.entries().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path_bytes().into_owned();
        let size = entry.size();
        // OPA's names begin with a slash.
        let name = path.strip_prefix(b"/").unwrap_or(&path);
        let limit = match name {
            b"policy.wasm" => MODULE_MAX as u64,
            b"data.json" => DATA_MAX as u64,
            _ => continue,
        };
        if size > limit {
            return match name {
                b"data.json" => {
                    Err(RegoError::TooMuchData { len: usize::try_from(size).unwrap_or(usize::MAX) })
                }
                _ => {
                    Err(RegoError::Bundle(format!("policy.wasm has {size} bytes, at most {limit} are read")))
                }
            };
        }
        let (shown, place) = match name {
            b"policy.wasm" => ("policy.wasm", &mut module),
            _ => ("data.json", &mut data),
        };
        // Readers of tars differ in which of the two they take.
        if place.is_some() {
            return Err(RegoError::Bundle(format!(
                "{shown} is in it twice; build it again with `opa build`"
            )));
        }
        let mut contents = Vec::new();
        entry.take(limit).read_to_end(&mut contents).map_err(failed)?;
        *place = Some(contents);
    }
    let module = module.ok_or_else(|| {
        RegoError::Bundle("no policy.wasm inside; build it with `opa build -t wasm -e ENTRYPOINT`".into())
    })?;
    Ok(Rego { module, data: data.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// As OPA writes it, with these files.
    fn packed(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, contents) in files {
            let mut header = tar::Header::new_ustar();
            // As it is: the crate's own way takes a slash away.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(contents.len() as u64);
            header.set_mode(0o600);
            header.set_cksum();
            archive.append(&header, *contents).unwrap();
        }
        archive.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn what_is_in_a_bundle_twice_is_refused_by_its_name() {
        let module: (&str, &[u8]) = ("/policy.wasm", b"module");
        let good = packed(&[("/data.json", b"{}"), module, ("/.manifest", b"1"), ("/.manifest", b"2")]);
        let read = Rego::read(&good, None).unwrap();
        assert_eq!((read.module.as_slice(), read.data.as_slice()), (&b"module"[..], &b"{}"[..]));
        for (files, twice) in [
            ([module, ("policy.wasm", b"other"), ("/data.json", b"{}")], "policy.wasm"),
            ([("/data.json", b"{}"), module, ("data.json", b"{}")], "data.json"),
        ] {
            let error = Rego::read(&packed(&files), None).unwrap_err().to_string();
            assert!(error.contains(&format!("{twice} is in it twice")), "{error}");
        }
    }
}
