//! An adapter, moved to where its data and its table of functions find room: behind OPA's, and those of adapters before it.
//!
//! The linker left behind which bytes of code and data are addresses (`reloc.CODE` and `reloc.DATA`, as the tool
//! conventions of WebAssembly describe them), and which are numbers in its table; each becomes higher by the same number.

use wasmparser::{KnownCustom, Parser, Payload, RelocationType, TypeRef};

use super::RegoError;

const PAGE: u32 = 64 << 10;

/// The adapter as it is at one place.
pub(super) struct Placed {
    pub(super) module: Vec<u8>,
    /// Where it begins, with its stack, and ends; bytes.
    pub(super) base: u32,
    pub(super) end: u32,
    /// Where its functions begin in the table that all adapters share, and end.
    pub(super) table: u32,
    pub(super) table_end: u32,
}

/// Moves adapters to one behind the other, the first one `pages` up.
pub(super) fn in_a_row<'a>(
    adapters: impl Iterator<Item = &'a [u8]>,
    mut pages: u32,
) -> Result<Vec<Placed>, RegoError> {
    let (mut all, mut table) = (Vec::new(), 0);
    for adapter in adapters {
        let placed = to(adapter, pages, table)?;
        pages = placed.end.div_ceil(PAGE);
        table = placed.table_end;
        all.push(placed);
    }
    Ok(all)
}

/// Moves the adapter `pages` up, and its functions by `table`.
fn to(adapter: &[u8], pages: u32, table: u32) -> Result<Placed, RegoError> {
    let bad = |why: &str| RegoError::Adapter(why.to_owned());
    let failed = |error: wasmparser::Error| RegoError::Adapter(error.to_string());
    let base = pages.checked_mul(PAGE).ok_or_else(|| bad("no room"))?;
    let mut module = adapter.to_vec();
    // Where the contents of each section begin, custom ones included.
    let mut sections: Vec<usize> = Vec::new();
    let (mut own, mut moved, mut elements) = (0_u64, 0_usize, 0_u64);
    for payload in Parser::new(0).parse_all(adapter) {
        let payload = payload.map_err(failed)?;
        if let Some((_, range)) = payload.as_section() {
            sections.push(range.start);
        }
        match payload {
            Payload::MemorySection(section) => {
                for memory in section {
                    own = memory.map_err(failed)?.initial;
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    elements = elements.saturating_add(table.map_err(failed)?.ty.initial);
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    if let TypeRef::Memory(_) = import.map_err(failed)?.ty {
                        return Err(bad("it imports a memory"));
                    }
                }
            }
            Payload::CustomSection(section) => {
                let KnownCustom::Reloc(reader) = section.as_known() else { continue };
                let target =
                    usize::try_from(reader.section_index()).ok().and_then(|index| sections.get(index));
                let start = *target.ok_or_else(|| bad("relocations of no section"))?;
                for entry in reader.entries() {
                    let entry = entry.map_err(failed)?;
                    let at = start.saturating_add(usize::try_from(entry.offset).unwrap_or(usize::MAX));
                    let field = at..at.saturating_add(5);
                    match entry.ty {
                        RelocationType::MemoryAddrLeb | RelocationType::MemoryAddrSleb => {
                            let field =
                                module.get_mut(field).ok_or_else(|| bad("relocation beyond the end"))?;
                            let value = leb(field).wrapping_add(base);
                            write_leb(field, value, entry.ty == RelocationType::MemoryAddrSleb);
                            moved += 1;
                        }
                        RelocationType::MemoryAddrI32 => {
                            let field = module.get_mut(at..).and_then(<[u8]>::first_chunk_mut);
                            let field: &mut [u8; 4] =
                                field.ok_or_else(|| bad("relocation beyond the end"))?;
                            *field = u32::from_le_bytes(*field).wrapping_add(base).to_le_bytes();
                            moved += 1;
                        }
                        RelocationType::TableIndexSleb => {
                            let field =
                                module.get_mut(field).ok_or_else(|| bad("relocation beyond the end"))?;
                            let value = leb(field).wrapping_add(table);
                            write_leb(field, value, true);
                        }
                        RelocationType::TableIndexI32 => {
                            let field = module.get_mut(at..).and_then(<[u8]>::first_chunk_mut);
                            let field: &mut [u8; 4] =
                                field.ok_or_else(|| bad("relocation beyond the end"))?;
                            *field = u32::from_le_bytes(*field).wrapping_add(table).to_le_bytes();
                        }
                        // What is neither stays: indexes are the merge's business.
                        RelocationType::FunctionIndexLeb
                        | RelocationType::TypeIndexLeb
                        | RelocationType::GlobalIndexLeb
                        | RelocationType::TableNumberLeb => {}
                        other => return Err(RegoError::Adapter(format!("a relocation of kind {other:?}"))),
                    }
                }
            }
            _ => {}
        }
    }
    if moved == 0 {
        return Err(bad("it has no relocations"));
    }
    let own = u32::try_from(own).ok().and_then(|pages| pages.checked_mul(PAGE)).filter(|own| *own > 0);
    let end = own.and_then(|own| base.checked_add(own)).ok_or_else(|| bad("no room"))?;
    let elements = u32::try_from(elements).ok().and_then(|elements| table.checked_add(elements));
    let table_end = elements.ok_or_else(|| bad("its table is too long"))?;
    Ok(Placed { module, base, end, table, table_end })
}

/// A number of five bytes, of which linkers use all, whatever it is.
fn leb(field: &[u8]) -> u32 {
    field.iter().rev().fold(0_u32, |value, byte| value << 7 | u32::from(byte & 0x7f))
}

fn write_leb(field: &mut [u8], value: u32, signed: bool) {
    // The fifth byte has the four bits that are left, and, in a signed number, three more of its sign.
    let sign = if signed && value >> 31 == 1 { 0x70 } else { 0 };
    let mut rest = value;
    let last = field.len().saturating_sub(1);
    for (index, byte) in field.iter_mut().enumerate() {
        let bits = u8::try_from(rest & 0x7f).unwrap_or(0);
        *byte = if index == last { bits | sign } else { bits | 0x80 };
        rest >>= 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for value in [0, 1, 127, 128, 524_288, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            for signed in [false, true] {
                let mut field = [0; 5];
                write_leb(&mut field, value, signed);
                assert_eq!(leb(&field), value);
                let mut reader = wasmparser::BinaryReader::new(&field, 0);
                let read = if signed {
                    reader.read_var_i32().unwrap().cast_unsigned()
                } else {
                    reader.read_var_u32().unwrap()
                };
                assert_eq!(read, value);
            }
        }
    }
}
