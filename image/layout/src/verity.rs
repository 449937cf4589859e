//! The hash tree behind a root image.
//!
//! The file is data blocks, one superblock, then the tree with its top level first. Made here by
//! the builder; checked by the kernel, block by block, as it reads.
//!
//! Spec: cryptsetup's on-disk verity format, version 1, hash type 1 (salt before the data).

use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest};

/// The tree's hash, as the kernel names it.
///
/// Where no instructions for SHA-256 are, as on emulated machines, it takes half of the time; the
/// whole image is hashed at every boot.
pub const HASH: &str = "blake2b-256";

type Hash = Blake2b<U32>;

/// Size of data blocks and of hash blocks.
pub const BLOCK_BYTES: usize = 4096;

/// UUID of every tree: fixed, so that the same data give the same file.
pub const UUID: [u8; 16] = *b"muster root tree";

/// Salt of every tree. It need not be secret; a fixed one keeps builds reproducible.
pub const SALT: [u8; 32] = *b"muster: salt of the node's root.";

const DIGEST_BYTES: usize = 32;
const DIGESTS_PER_BLOCK: usize = BLOCK_BYTES / DIGEST_BYTES;

/// Hashes data as it arrives, in pieces of any size.
#[derive(Debug, Clone)]
pub struct TreeBuilder {
    salted: Hash,
    salt: Vec<u8>,
    block: Vec<u8>,
    digests: Vec<u8>,
    blocks: u64,
}

/// A finished tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The one hash that stands for all data.
    pub root_hash: [u8; 32],
    /// Number of data blocks.
    pub data_blocks: u64,
    /// Superblock and tree, as they follow the data.
    pub bytes: Vec<u8>,
}

impl TreeBuilder {
    /// Starts a tree with this salt, of at most 256 bytes.
    #[must_use]
    pub fn new(salt: &[u8]) -> Self {
        let salt: Vec<u8> = salt.iter().copied().take(256).collect();
        let salted = Hash::new_with_prefix(&salt);
        Self { salted, salt, block: Vec::new(), digests: Vec::new(), blocks: 0 }
    }

    /// Takes the next bytes of data.
    pub fn absorb(&mut self, mut bytes: &[u8]) {
        if !self.block.is_empty() {
            let missing = BLOCK_BYTES - self.block.len();
            let (head, rest) = bytes.split_at(missing.min(bytes.len()));
            self.block.extend_from_slice(head);
            bytes = rest;
            if self.block.len() < BLOCK_BYTES {
                return;
            }
            let block = std::mem::take(&mut self.block);
            self.seal(&block);
        }
        let mut blocks = bytes.chunks_exact(BLOCK_BYTES);
        for block in &mut blocks {
            self.seal(block);
        }
        self.block.extend_from_slice(blocks.remainder());
    }

    /// Builds the levels above the data; a last part of a block is filled with zeros.
    #[must_use]
    pub fn finish(mut self) -> Tree {
        if !self.block.is_empty() {
            let mut block = std::mem::take(&mut self.block);
            block.resize(BLOCK_BYTES, 0);
            self.seal(&block);
        }
        let mut levels = Vec::new();
        let mut digests = std::mem::take(&mut self.digests);
        while digests.len() > DIGEST_BYTES {
            digests.resize(digests.len().next_multiple_of(BLOCK_BYTES), 0);
            let above = digests.chunks_exact(BLOCK_BYTES).flat_map(|b| self.digest(b)).collect();
            levels.push(std::mem::replace(&mut digests, above));
        }
        let mut bytes = self.superblock();
        for level in levels.iter().rev() {
            bytes.extend_from_slice(level);
        }
        let root_hash = digests.try_into().unwrap_or_default();
        Tree { root_hash, data_blocks: self.blocks, bytes }
    }

    fn seal(&mut self, block: &[u8]) {
        let digest = self.digest(block);
        self.digests.extend_from_slice(&digest);
        self.blocks += 1;
    }

    fn digest(&self, block: &[u8]) -> [u8; DIGEST_BYTES] {
        self.salted.clone().chain_update(block).finalize().into()
    }

    fn superblock(&self) -> Vec<u8> {
        let block_bytes: u32 = 4096;
        let salt_bytes = u16::try_from(self.salt.len()).unwrap_or_default();
        let mut bytes = Vec::with_capacity(BLOCK_BYTES);
        bytes.extend_from_slice(b"verity\0\0");
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        bytes.extend_from_slice(&UUID);
        bytes.extend_from_slice(HASH.as_bytes());
        bytes.resize(64, 0);
        bytes.extend_from_slice(&block_bytes.to_le_bytes());
        bytes.extend_from_slice(&block_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.blocks.to_le_bytes());
        bytes.extend_from_slice(&salt_bytes.to_le_bytes());
        bytes.resize(88, 0);
        bytes.extend_from_slice(&self.salt);
        bytes.resize(BLOCK_BYTES, 0);
        bytes
    }
}

/// Returns the length of superblock and tree for so many data blocks.
#[must_use]
pub fn tree_bytes(data_blocks: u64) -> u64 {
    let per_block = u64::try_from(DIGESTS_PER_BLOCK).unwrap_or(u64::MAX);
    let mut total = 1;
    let mut level = data_blocks;
    while level > 1 {
        level = level.div_ceil(per_block);
        total += level;
    }
    total * u64::try_from(BLOCK_BYTES).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(data: &[u8]) -> Tree {
        let mut builder = TreeBuilder::new(&SALT);
        builder.absorb(data);
        builder.finish()
    }

    #[test]
    fn the_size_of_pieces_does_not_matter() {
        let data: Vec<u8> = (0..=250).cycle().take(BLOCK_BYTES * 300 + 5).collect();
        let whole = tree(&data);
        assert_eq!(whole.data_blocks, 301);
        for piece in [1000, 4095, 4096, 4097, 70_000] {
            let mut builder = TreeBuilder::new(&SALT);
            data.chunks(piece).for_each(|part| builder.absorb(part));
            assert_eq!(builder.finish(), whole, "{piece}");
        }
    }

    #[test]
    fn the_tree_has_the_foretold_size() {
        for blocks in [2, 127, 128, 129, 128 * 128, 128 * 128 + 1] {
            let tree = tree(&vec![1; blocks * BLOCK_BYTES]);
            assert_eq!(tree.bytes.len() as u64, tree_bytes(blocks as u64), "{blocks}");
        }
    }

    #[test]
    fn every_byte_counts() {
        let mut data = vec![0; BLOCK_BYTES * 200];
        let before = tree(&data).root_hash;
        data[BLOCK_BYTES * 150 + 7] = 1;
        assert_ne!(tree(&data).root_hash, before);
    }
}
