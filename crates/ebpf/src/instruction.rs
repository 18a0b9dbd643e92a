//! Instructions (`struct bpf_insn` of `linux/bpf.h`).

/// One instruction, as the kernel takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// The destination register.
    pub dst: u8,
    /// The source register.
    pub src: u8,
    /// Offset of an address or a jump.
    pub offset: i16,
    /// A number.
    pub immediate: i32,
}

impl Instruction {
    /// Its bytes on a machine whose integers are little-endian.
    pub fn bytes(self) -> [u8; 8] {
        let mut bytes = [self.code, self.src << 4 | self.dst, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&self.offset.to_le_bytes());
        bytes[4..].copy_from_slice(&self.immediate.to_le_bytes());
        bytes
    }
}

/// A line of the listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// An instruction.
    Op(Instruction),
    /// Puts a map into a register: two instructions.
    Map {
        /// The register.
        dst: u8,
        /// The map's name in the source, such as `slots4`.
        name: &'static str,
    },
}

/// `BPF_LD | BPF_DW | BPF_IMM`: the instruction that has a second half.
const LOAD_WIDE: u8 = 0x18;
/// `BPF_PSEUDO_MAP_FD`
const MAP_DESCRIPTOR: u8 = 1;

impl Line {
    /// The instructions, with the map's descriptor in them.
    pub fn instructions<E>(
        self,
        descriptor: impl FnOnce(&str) -> Result<i32, E>,
    ) -> Result<Vec<Instruction>, E> {
        match self {
            Self::Op(instruction) => Ok(vec![instruction]),
            Self::Map { dst, name } => {
                let immediate = descriptor(name)?;
                let first = Instruction { code: LOAD_WIDE, dst, src: MAP_DESCRIPTOR, offset: 0, immediate };
                Ok(vec![first, Instruction { code: 0, dst: 0, src: 0, offset: 0, immediate: 0 }])
            }
        }
    }
}

/// An instruction of the listing.
pub(crate) const fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Line {
    Line::Op(Instruction { code, dst, src, offset, immediate })
}

/// A map of the listing.
pub(crate) const fn map(dst: u8, name: &'static str) -> Line {
    Line::Map { dst, name }
}
