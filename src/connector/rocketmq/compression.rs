//! Bodies as they were before a producer compressed them.
//!
//! The library's own decompression is off: one LZ4 body from a Java producer ends its decoding, and that message and all
//! behind it in the response are gone without an error. Here a body that cannot be read is one bad message.
//!
//! What comes out is bounded, so that a small message cannot fill the memory.

use std::io::{Cursor, Read};

/// The most that one body may become.
pub(super) const LARGEST_BODY: u64 = 64 << 20;

/// Set in a message's `sys_flag` when its body is compressed.
const COMPRESSED: i32 = 1;

/// How an LZ4 frame begins.
const LZ4_FRAME: [u8; 4] = [0x04, 0x22, 0x4D, 0x18];

/// The body, decompressed as `sys_flag` says: into `out`, whatever that held, if it has to be.
pub(super) fn plain<'a>(sys_flag: i32, body: &'a [u8], out: &'a mut Vec<u8>) -> Result<&'a [u8], String> {
    if sys_flag & COMPRESSED == 0 {
        return Ok(body);
    }
    out.clear();
    let (name, done) = match (sys_flag >> 8) & 7 {
        1 if body.starts_with(&LZ4_FRAME) => ("LZ4", bounded(lz4_flex::frame::FrameDecoder::new(body), out)),
        1 => ("LZ4", lz4_block(body, out)),
        2 => ("zstd", zstd::Decoder::new(Cursor::new(body)).map_err(|e| e.to_string()).and_then(|d| bounded(d, out))),
        // 0 is what producers wrote before the kind of compression was recorded.
        0 | 3 => ("zlib", bounded(flate2::read::ZlibDecoder::new(body), out)),
        other => ("unknown", Err(format!("kind {other}"))),
    };
    match done {
        Ok(()) => Ok(out),
        Err(reason) => Err(format!("its body cannot be decompressed ({name}: {reason})")),
    }
}

fn bounded(reader: impl Read, out: &mut Vec<u8>) -> Result<(), String> {
    let read = reader.take(LARGEST_BODY + 1).read_to_end(out).map_err(|e| e.to_string())?;
    if read as u64 > LARGEST_BODY { Err(too_large()) } else { Ok(()) }
}

/// An LZ4 block behind its size, as producers in Rust write it.
fn lz4_block(body: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let (size, block) = body.split_first_chunk::<4>().ok_or("no size")?;
    let size = u32::from_le_bytes(*size);
    if u64::from(size) > LARGEST_BODY {
        return Err(too_large());
    }
    out.extend(lz4_flex::block::decompress(block, size as usize).map_err(|e| e.to_string())?);
    Ok(())
}

fn too_large() -> String {
    format!("more than {} MB", LARGEST_BODY >> 20)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &[u8] = b"millstream millstream millstream millstream";

    fn zlib(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn body(sys_flag: i32, body: &[u8]) -> Result<Vec<u8>, String> {
        plain(sys_flag, body, &mut b"before".to_vec()).map(<[u8]>::to_vec)
    }

    #[test]
    fn every_kind_comes_back() {
        let mut frame = lz4_flex::frame::FrameEncoder::new(Vec::new());
        frame.write_all(TEXT).unwrap();
        assert_eq!(body(0, TEXT).unwrap(), TEXT);
        assert_eq!(body(1, &zlib(TEXT)).unwrap(), TEXT);
        assert_eq!(body(1 | 3 << 8, &zlib(TEXT)).unwrap(), TEXT);
        assert_eq!(body(1 | 2 << 8, &zstd::encode_all(TEXT, 3).unwrap()).unwrap(), TEXT);
        assert_eq!(body(1 | 1 << 8, &frame.finish().unwrap()).unwrap(), TEXT);
        assert_eq!(body(1 | 1 << 8, &lz4_flex::block::compress_prepend_size(TEXT)).unwrap(), TEXT);
    }

    #[test]
    fn what_is_broken_or_too_large_is_refused() {
        for kind in 0..=7 {
            assert!(body(1 | kind << 8, b"not compressed at all").is_err(), "{kind}");
        }
        let bomb = zlib(&vec![0; LARGEST_BODY as usize + 1]);
        assert!(body(1, &bomb).unwrap_err().contains("more than 64 MB"));
        assert!(body(1 | 1 << 8, &u32::MAX.to_le_bytes()).unwrap_err().contains("more than 64 MB"));
    }
}
