//! Tars that are not what they say: compressed, leading elsewhere, with links, cut short, going on, said twice.

use std::fs;
use std::path::Path;
use std::process::Command;

use portcullis::bundle::write;
use tar::{Builder, EntryType, Header};

use super::{draft, read_path, written};

type Entry = (Header, Vec<u8>);

/// The entries of a good bundle.
fn entries(path: &Path) -> Vec<Entry> {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            (entry.header().clone(), bytes)
        })
        .collect()
}

/// Some other entry: name and link as they are, checked by nobody.
fn entry(kind: EntryType, name: &[u8], link: &[u8], bytes: &[u8]) -> Entry {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    (header, bytes.to_vec())
}

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (header, bytes) in entries {
        builder.append(header, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}; apt-get install {program}"));
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

#[test]
fn tars_with_anything_but_the_files_of_a_bundle_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = entries(&written(dir.path(), "good.tar"));
    let path = dir.path().join("bad.tar");
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        read_path(&path).map(|bundle| bundle.digest()).map_err(|error| error.to_string())
    };
    let digest = error(&tar(&good)).expect("its own entries make a bundle");
    let blob = good[3].0.path_bytes().into_owned();
    let traversal = b"blobs/sha256/../../../../tmp/x";
    let more: [(&str, Entry, &str); 16] = [
        (
            "leads up",
            entry(EntryType::Regular, b"../x", b"", b"x"),
            r#"has entry "../x", expected oci-layout"#,
        ),
        ("leads up later", entry(EntryType::Regular, traversal, b"", b"x"), "has entry \"blobs/sha256/../.."),
        ("absolute", entry(EntryType::Regular, b"/etc/passwd", b"", b"x"), r#"has entry "/etc/passwd""#),
        ("a folder elsewhere", entry(EntryType::Directory, b"../", b"", b""), r#"has entry "../""#),
        (
            "a folder with contents",
            entry(EntryType::Directory, b"blobs/", b"", b"x"),
            r#"has entry "blobs/""#,
        ),
        ("another file", entry(EntryType::Regular, b"README", b"", b"x"), r#"has entry "README""#),
        ("no name", entry(EntryType::Regular, b"", b"", b"x"), r#"has entry "", expected"#),
        ("not UTF-8", entry(EntryType::Regular, b"\xff", b"", b"x"), "has entry \"\u{fffd}\""),
        (
            "a link",
            entry(EntryType::Symlink, b"index.json", b"/etc/passwd", b""),
            "of kind symbolic link, expected regular files",
        ),
        ("a hard link", entry(EntryType::Link, &blob, b"index.json", b""), "of kind hard link"),
        ("a FIFO", entry(EntryType::Fifo, b"blobs/sha256/x", b"", b""), "of kind FIFO"),
        ("a device", entry(EntryType::Char, b"blobs/sha256/x", b"", b""), "of kind character device"),
        (
            "PAX",
            entry(EntryType::XHeader, b"x", b"", b"30 path=../../../../etc/passwd\n"),
            "of kind extension (PAX)",
        ),
        (
            "PAX for all",
            entry(EntryType::XGlobalHeader, b"x", b"", b"11 size=99\n"),
            "of kind extension (PAX)",
        ),
        (
            "a long name",
            entry(EntryType::GNULongName, b"././@LongLink", b"", b"../x"),
            "of kind long name (GNU)",
        ),
        ("sparse", entry(EntryType::GNUSparse, b"blobs/sha256/x", b"", b""), "of kind sparse file"),
    ];
    for (what, bad, expected) in more {
        for at in [0, good.len()] {
            let mut all = good.clone();
            all.insert(at, bad.clone());
            let error = error(&tar(&all)).expect_err(what);
            assert!(error.contains(expected), "{what}: {error}");
        }
    }
    for (number, twice) in good.iter().enumerate() {
        let mut all = good.clone();
        all.push(twice.clone());
        let error = error(&tar(&all)).expect_err("twice");
        assert!(error.contains("twice") && error.contains("has entry"), "entry {number}: {error}");
    }
    // Order is not looked at, and folders say nothing.
    let mut other = good.clone();
    other.reverse();
    other.insert(0, entry(EntryType::Directory, b"./blobs/sha256/", b"", b""));
    assert_eq!(error(&tar(&other)), Ok(digest));
    let many = vec![entry(EntryType::Directory, b"blobs/", b"", b""); 1025];
    assert!(error(&tar(&many)).unwrap_err().contains("has more than 1024 entries"));
}

#[test]
fn tars_that_are_cut_short_or_go_on_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "b.tar");
    let bytes = fs::read(&path).unwrap();
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        read_path(&path).map(|bundle| bundle.digest()).map_err(|error| error.to_string())
    };
    let digest = error(&bytes).expect("whole it is read");
    let (mut ends, mut lengths) = (0, 0);
    for len in (0..bytes.len()).step_by(64).chain([bytes.len() - 1]) {
        let error = error(&bytes[..len]).expect_err("cut short");
        assert!(error.contains("the file was cut short"), "{len}: {error}");
        ends += usize::from(error.contains("no end mark"));
        lengths += 1;
    }
    println!("cut short to {lengths} lengths, {ends} of them between entries or in a header");
    let with = |more: &[u8]| [&bytes, more].concat();
    // Others fill up to 10 KiB.
    assert_eq!(error(&with(&[0; 9728])), Ok(digest));
    assert!(error(&with(&[0; 1 << 17])).unwrap_err().contains("goes on behind its end mark"));
    assert!(error(&with(b"x")).unwrap_err().contains("goes on behind its end mark at byte"));
    assert!(error(&with(&bytes)).unwrap_err().contains("goes on behind its end mark"));
    // One entry says it is longer than everything.
    for size in [1_u64 << 30, 1 << 40, u64::MAX] {
        let mut header = Header::from_byte_slice(&bytes[..512]).clone();
        header.set_size(size);
        header.set_cksum();
        let error = error(&[header.as_bytes() as &[u8], &bytes[512..]].concat()).unwrap_err();
        assert!(error.contains("ends behind the end of the file"), "{error}");
    }
    let noise: Vec<u8> = (0..8192_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
    assert!(error(&noise).unwrap_err().contains("is no tar: the header at byte 0 has a wrong checksum"));
}

#[test]
fn compressed_tars_are_refused_before_anything_is_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "b.tar");
    let plain = fs::read(&path).unwrap();
    run("gzip", &["-k", path.to_str().unwrap()]);
    let gzip = fs::read(dir.path().join("b.tar.gz")).unwrap();
    // A bomb: 64 MiB of zeroes in 64 KiB.
    let zeroes = dir.path().join("zeroes");
    fs::File::create(&zeroes).unwrap().set_len(64 << 20).unwrap();
    run("gzip", &[zeroes.to_str().unwrap()]);
    let bomb = fs::read(dir.path().join("zeroes.gz")).unwrap();
    let magic = |start: &[u8]| [start, &plain].concat();
    for (bytes, by, with) in [
        (gzip, "gzip", "gunzip"),
        (bomb, "gzip", "gunzip"),
        (magic(b"\x28\xb5\x2f\xfd"), "zstd", "unzstd"),
        (magic(b"\xfd7zXZ\0"), "xz", "unxz"),
        (magic(b"BZh9"), "bzip2", "bunzip2"),
        (magic(b"PK\x03\x04"), "zip", "unzip"),
        (magic(b"\x04\x22\x4d\x18"), "lz4", "unlz4"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = read_path(&path).expect_err("compressed").to_string();
        assert!(error.contains(&format!("is compressed with {by};")), "{error}");
        assert!(error.ends_with(&format!("run {with} first")), "{error}");
    }
    fs::write(&path, plain).unwrap();
    read_path(&path).expect("plain it is read");
}

#[test]
fn what_tar_itself_packs_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let folder = written(dir.path(), "b");
    let tar = dir.path().join("b.tar");
    for format in ["ustar", "gnu", "v7"] {
        let format = format!("--format={format}");
        run("tar", &[&format, "-C", folder.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "."]);
        assert_eq!(read_path(&tar).unwrap(), read_path(&folder).unwrap(), "{format}");
    }
    // And the other way round: what is written here is unpacked by it.
    let ours = dir.path().join("ours.tar");
    write::create(&draft(3).assemble().unwrap(), &ours).unwrap();
    let unpacked = dir.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    run("tar", &["-C", unpacked.to_str().unwrap(), "-xf", ours.to_str().unwrap()]);
    assert_eq!(read_path(&unpacked).unwrap(), read_path(&ours).unwrap());
}
