//! A component's sections, and what is in them.

use wasm_encoder::ExportKind;
use wasmparser::{BinaryReader, ExternalKind, SectionLimited};

/// What is wrong with a component.
pub(super) type Error = String;

/// Magic number, version and layer.
const HEADER: usize = 8;

/// As it is written.
pub(super) fn export_kind(kind: ExternalKind) -> Result<ExportKind, Error> {
    Ok(match kind {
        ExternalKind::Func => ExportKind::Func,
        ExternalKind::Table => ExportKind::Table,
        ExternalKind::Memory => ExportKind::Memory,
        ExternalKind::Global => ExportKind::Global,
        other => return Err(format!("it has a {other:?}")),
    })
}

/// The item of an index.
pub(super) fn at<T>(all: &[T], index: u32) -> Result<&T, Error> {
    usize::try_from(index)
        .ok()
        .and_then(|index| all.get(index))
        .ok_or_else(|| format!("there is no item {index}"))
}

/// What a section has in it.
pub(super) fn entries<'a, T: wasmparser::FromReader<'a>>(
    data: &'a [u8],
) -> Result<impl Iterator<Item = Result<T, Error>>, Error> {
    let section = SectionLimited::<T>::new(BinaryReader::new(data, 0)).map_err(|error| error.to_string())?;
    Ok(section.into_iter().map(|entry| entry.map_err(|error| error.to_string())))
}

/// The sections of a component, each as its id and its contents.
pub(super) fn sections(bytes: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8]), Error>> {
    let mut reader = BinaryReader::new(bytes.get(HEADER..).unwrap_or_default(), HEADER);
    std::iter::from_fn(move || {
        if reader.eof() {
            return None;
        }
        let mut next = || {
            let id = reader.read_u8()?;
            let len = reader.read_var_u32()?;
            Ok((id, reader.read_bytes(usize::try_from(len).unwrap_or(usize::MAX))?))
        };
        Some(next().map_err(|error: wasmparser::BinaryReaderError| error.to_string()))
    })
}
