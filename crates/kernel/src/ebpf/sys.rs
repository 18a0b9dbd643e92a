//! `bpf(2)` with a safe face: maps, programs, links and pins as owned descriptors (`union bpf_attr` of `linux/bpf.h`).
#![expect(
    unsafe_code,
    reason = "a system call that takes pointers; neither std nor libc has more than its number"
)]

use std::ffi::CString;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use ebpf::{Instruction, MapSpec};

/// Called with the command before each call; an error is the call's. For tests, which have each call fail once.
pub type Gate = Arc<dyn Fn(&'static str) -> io::Result<()> + Send + Sync>;

/// A way to call the kernel.
#[derive(Clone)]
pub struct Bpf {
    gate: Gate,
}

impl fmt::Debug for Bpf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bpf")
    }
}

impl Default for Bpf {
    fn default() -> Self {
        Self { gate: Arc::new(|_| Ok(())) }
    }
}

/// `enum bpf_cmd`
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ProgramLoad = 5,
    ObjectPin = 6,
    ObjectGet = 7,
    #[cfg(test)]
    ProgramAttach = 8,
    #[cfg(test)]
    ProgramDetach = 9,
    ObjectInfo = 15,
    #[cfg(test)]
    ProgramQuery = 16,
    BtfLoad = 18,
    MapLookupBatch = 24,
    LinkCreate = 28,
    LinkUpdate = 29,
    IterationCreate = 33,
    LinkDetach = 34,
}

impl Command {
    fn as_str(self) -> &'static str {
        match self {
            Self::MapCreate => "BPF_MAP_CREATE",
            Self::MapLookup => "BPF_MAP_LOOKUP_ELEM",
            Self::MapUpdate => "BPF_MAP_UPDATE_ELEM",
            Self::MapDelete => "BPF_MAP_DELETE_ELEM",
            Self::ProgramLoad => "BPF_PROG_LOAD",
            Self::ObjectPin => "BPF_OBJ_PIN",
            Self::ObjectGet => "BPF_OBJ_GET",
            #[cfg(test)]
            Self::ProgramAttach => "BPF_PROG_ATTACH",
            #[cfg(test)]
            Self::ProgramDetach => "BPF_PROG_DETACH",
            Self::ObjectInfo => "BPF_OBJ_GET_INFO_BY_FD",
            #[cfg(test)]
            Self::ProgramQuery => "BPF_PROG_QUERY",
            Self::BtfLoad => "BPF_BTF_LOAD",
            Self::MapLookupBatch => "BPF_MAP_LOOKUP_BATCH",
            Self::LinkCreate => "BPF_LINK_CREATE",
            Self::LinkUpdate => "BPF_LINK_UPDATE",
            Self::IterationCreate => "BPF_ITER_CREATE",
            Self::LinkDetach => "BPF_LINK_DETACH",
        }
    }
}

const ATTR_BYTES: usize = 128;

/// `union bpf_attr`; what it points to lives as long.
struct Attr<'a> {
    words: [u64; ATTR_BYTES / 8],
    pointees: PhantomData<&'a mut [u8]>,
}

impl<'a> Attr<'a> {
    fn new() -> Self {
        Self { words: [0; ATTR_BYTES / 8], pointees: PhantomData }
    }

    fn put(mut self, offset: usize, bytes: &[u8]) -> Self {
        for (n, byte) in bytes.iter().enumerate() {
            let (word, within) = ((offset + n) / 8, (offset + n) % 8);
            let mut octets = self.words[word].to_ne_bytes();
            octets[within] = *byte;
            self.words[word] = u64::from_ne_bytes(octets);
        }
        self
    }

    fn number(self, offset: usize, value: u32) -> Self {
        self.put(offset, &value.to_ne_bytes())
    }

    fn descriptor(self, offset: usize, fd: BorrowedFd<'_>) -> Self {
        self.put(offset, &fd.as_raw_fd().to_ne_bytes())
    }

    fn reads(self, offset: usize, bytes: &'a [u8]) -> Self {
        self.put(offset, &(bytes.as_ptr().expose_provenance() as u64).to_ne_bytes())
    }

    fn writes(self, offset: usize, bytes: &'a mut [u8]) -> Self {
        self.put(offset, &(bytes.as_mut_ptr().expose_provenance() as u64).to_ne_bytes())
    }

    /// At most 15 characters, and a zero behind.
    fn name(self, offset: usize, name: &str) -> Self {
        let bytes = name.as_bytes();
        self.put(offset, &bytes[..bytes.len().min(15)])
    }

    fn get(&self, offset: usize) -> u32 {
        let octets = self.words[offset / 8].to_ne_bytes();
        let at = offset % 8;
        u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
    }
}

/// What the kernel tells of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) key_bytes: u32,
    pub(crate) value_bytes: u32,
    pub(crate) entries: u32,
}

/// What the kernel tells of a link to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) cgroup: u64,
    pub(crate) attach_type: u32,
}

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, at a hook (`enum bpf_attach_type`).
    SocketAddress(u32),
    /// `BPF_PROG_TYPE_TRACING` at `BPF_TRACE_ITER`: is run for each of what the function with this number in the kernel's types is
    /// called for.
    Iteration(u32),
}

impl Kind {
    /// Type, where it is attached, and the number of a function, or 0.
    fn numbers(self) -> [u32; 3] {
        match self {
            Self::SocketAddress(attach_type) => [18, attach_type, 0],
            Self::Iteration(function) => [26, TRACE_ITERATION, function],
        }
    }
}

/// `BPF_TRACE_ITER`
const TRACE_ITERATION: u32 = 28;
/// `BPF_LOG_STATS`, and the verifier's reasons: `BPF_LOG_LEVEL1`.
const LOG_STATISTICS: u32 = 4;
const LOG_REASONS: u32 = 1;

impl Bpf {
    /// One whose calls the gate lets through or not.
    pub fn gated(gate: Gate) -> Self {
        Self { gate }
    }

    /// # Safety
    /// What the attribute points to has to be as large as the kernel reads or writes for the command.
    unsafe fn call(&self, command: Command, attr: &mut Attr<'_>) -> io::Result<i32> {
        (self.gate)(command.as_str())?;
        let (number, pointer) = (command as libc::c_int, attr.words.as_mut_ptr());
        // SAFETY: the attribute is live and of this size; the caller sees to what it points to. Newer kernels only look whether
        // what they don't know is 0.
        let result = unsafe { libc::syscall(libc::SYS_bpf, number, pointer, ATTR_BYTES) };
        i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
    }

    /// # Safety
    /// As [`Bpf::call`]; the command gives a descriptor.
    unsafe fn open(&self, command: Command, attr: &mut Attr<'_>) -> io::Result<OwnedFd> {
        // SAFETY: the caller's.
        let fd = unsafe { self.call(command, attr) }?;
        // SAFETY: the kernel has just given us this descriptor, so nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub(crate) fn create_map(
        &self,
        name: &str,
        spec: &MapSpec,
        btf: Option<BorrowedFd<'_>>,
    ) -> io::Result<OwnedFd> {
        let (kind, flags) = spec.kind.numbers();
        let mut attr = Attr::new()
            .number(0, kind)
            .number(4, spec.key_bytes)
            .number(8, spec.value_bytes)
            .number(12, spec.entries)
            .number(16, flags)
            .name(28, name);
        if let Some(btf) = btf {
            attr =
                attr.descriptor(48, btf).number(52, super::btf::KEY_TYPE).number(56, super::btf::VALUE_TYPE);
        }
        // SAFETY: it points to nothing.
        unsafe { self.open(Command::MapCreate, &mut attr) }
    }

    pub(crate) fn load_btf(&self, btf: &[u8]) -> io::Result<OwnedFd> {
        let mut attr = Attr::new().reads(0, btf).number(16, len(btf));
        // SAFETY: the size is that of the slice; there is no log.
        unsafe { self.open(Command::BtfLoad, &mut attr) }
    }

    /// An element's value; `None`: there is none.
    pub(crate) fn find(&self, map: &Map, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        map.check(key, None)?;
        let mut value = vec![0; usize_of(map.info.value_bytes)];
        let mut attr = Attr::new().descriptor(0, map.fd()).reads(8, key).writes(16, &mut value);
        // SAFETY: key and value have the map's sizes.
        match unsafe { self.call(Command::MapLookup, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets an element of a map with these sizes.
    pub(crate) fn update(&self, map: &Map, key: &[u8], value: &[u8]) -> io::Result<()> {
        map.check(key, Some(value))?;
        let mut attr = Attr::new().descriptor(0, map.fd()).reads(8, key).reads(16, value);
        // SAFETY: key and value have the map's sizes.
        unsafe { self.call(Command::MapUpdate, &mut attr) }.map(drop)
    }

    /// Deletes an element; one that is not there is none.
    pub(crate) fn delete(&self, map: &Map, key: &[u8]) -> io::Result<()> {
        map.check(key, None)?;
        let mut attr = Attr::new().descriptor(0, map.fd()).reads(8, key);
        // SAFETY: the key has the map's size.
        match unsafe { self.call(Command::MapDelete, &mut attr) } {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.map(drop),
        }
    }

    /// All elements of a hash.
    pub(crate) fn elements(&self, map: &Map) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (key_bytes, value_bytes) = (usize_of(map.info.key_bytes), usize_of(map.info.value_bytes));
        let (mut found, mut position, mut room) = (Vec::new(), None::<[u8; 4]>, 4096_u32);
        loop {
            let mut keys = vec![0; usize_of(room) * key_bytes];
            let mut values = vec![0; usize_of(room) * value_bytes];
            let (mut next, before) = ([0; 4], position.unwrap_or_default());
            let mut attr = Attr::new()
                .writes(8, &mut next)
                .writes(16, &mut keys)
                .writes(24, &mut values)
                .number(32, room)
                .descriptor(36, map.fd());
            if position.is_some() {
                attr = attr.reads(0, &before);
            }
            // SAFETY: keys and values are as many as the number says; a position in a hash has four bytes.
            let result = unsafe { self.call(Command::MapLookupBatch, &mut attr) };
            let count = usize_of(attr.get(32));
            let mut is_last = false;
            match result.map_err(|error| (error.raw_os_error(), error)) {
                // A bucket has more elements than there is room for.
                Err((Some(libc::ENOSPC), _)) => {
                    room = room.saturating_mul(2);
                    continue;
                }
                Err((Some(libc::ENOENT), _)) => is_last = true,
                Err((_, error)) => return Err(error),
                Ok(_) => {}
            }
            let keys = keys.chunks_exact(key_bytes);
            let values = values.chunks_exact(value_bytes);
            found.extend(keys.zip(values).take(count).map(|(key, value)| (key.to_vec(), value.to_vec())));
            if is_last {
                return Ok(found);
            }
            position = Some(next);
        }
    }

    pub(crate) fn map_info(&self, map: BorrowedFd<'_>) -> io::Result<MapInfo> {
        let info = self.info::<20>(map)?;
        let number = |n: usize| u32::from_ne_bytes([info[n], info[n + 1], info[n + 2], info[n + 3]]);
        Ok(MapInfo { kind: number(0), key_bytes: number(8), value_bytes: number(12), entries: number(16) })
    }

    pub(crate) fn link_info(&self, link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
        let info = self.info::<32>(link)?;
        let [.., a, b, c, d, _, _, _, _] = info;
        let cgroup = info[16..24].try_into().map_or(0, u64::from_ne_bytes);
        Ok(LinkInfo { cgroup, attach_type: u32::from_ne_bytes([a, b, c, d]) })
    }

    /// The beginning of what the kernel tells of an object.
    fn info<const N: usize>(&self, object: BorrowedFd<'_>) -> io::Result<[u8; N]> {
        let mut info = [0; N];
        let size = len(&info);
        let mut attr = Attr::new().descriptor(0, object).number(4, size).writes(8, &mut info);
        // SAFETY: the size is that of the array.
        unsafe { self.call(Command::ObjectInfo, &mut attr) }?;
        Ok(info)
    }

    /// Loads a program for a place; the verifier's statistics are given too.
    ///
    /// # Errors
    /// With what the verifier said.
    pub(crate) fn load_program(
        &self,
        name: &str,
        kind: Kind,
        instructions: &[Instruction],
    ) -> Result<(OwnedFd, String), (io::Error, String)> {
        let code: Vec<u8> = instructions.iter().flat_map(|instruction| instruction.bytes()).collect();
        let load = |level| {
            let mut log = vec![0_u8; 256 * 1024];
            let size = len(&log);
            let licence = CString::new(ebpf::LICENSE).map_err(io::Error::from);
            let loaded = licence.and_then(|licence| {
                let [number, attach_type, function] = kind.numbers();
                let mut attr = Attr::new()
                    .number(0, number)
                    .number(4, len(instructions))
                    .reads(8, &code)
                    .reads(16, licence.as_bytes_with_nul())
                    .number(24, level)
                    .number(28, size)
                    .writes(32, &mut log)
                    .name(48, name)
                    .number(68, attach_type)
                    .number(108, function);
                // SAFETY: the numbers are those of the instructions and of the log's bytes; the licence ends with a zero.
                unsafe { self.open(Command::ProgramLoad, &mut attr) }
            });
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            (loaded, String::from_utf8_lossy(&log[..end]).into_owned())
        };
        match load(LOG_STATISTICS) {
            (Ok(program), log) => Ok((program, log)),
            (Err(error), _) => match load(LOG_REASONS) {
                (Ok(program), log) => Ok((program, log)),
                (Err(_), log) => Err((error, log)),
            },
        }
    }

    pub(crate) fn pin(&self, object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut attr = Attr::new().reads(0, path.as_bytes_with_nul()).descriptor(8, object);
        // SAFETY: the path ends with a zero.
        unsafe { self.call(Command::ObjectPin, &mut attr) }.map(drop)
    }

    /// What is pinned there; `None`: nothing.
    pub(crate) fn pinned(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut attr = Attr::new().reads(0, path.as_bytes_with_nul());
        // SAFETY: the path ends with a zero.
        match unsafe { self.open(Command::ObjectGet, &mut attr) } {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn create_link(
        &self,
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        attach_type: u32,
    ) -> io::Result<OwnedFd> {
        let mut attr = Attr::new().descriptor(0, program).descriptor(4, cgroup).number(8, attach_type);
        // SAFETY: it points to nothing.
        unsafe { self.open(Command::LinkCreate, &mut attr) }
    }

    /// Makes a program ready to be run with [`Bpf::iterate`].
    pub(crate) fn create_iteration(&self, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let mut attr = Attr::new().descriptor(0, program).number(8, TRACE_ITERATION);
        // SAFETY: it points to nothing.
        unsafe { self.open(Command::LinkCreate, &mut attr) }
    }

    /// Runs it for each of what there is in the network namespace of the calling thread; gives what it has written.
    pub(crate) fn iterate(&self, iteration: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
        let mut attr = Attr::new().descriptor(0, iteration);
        // SAFETY: it points to nothing.
        let file = unsafe { self.open(Command::IterationCreate, &mut attr) }?;
        let mut written = Vec::new();
        io::Read::read_to_end(&mut std::fs::File::from(file), &mut written)?;
        Ok(written)
    }

    /// Takes a program off at once; Linux 5.9.
    pub(crate) fn detach_link(&self, link: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = Attr::new().descriptor(0, link);
        // SAFETY: it points to nothing.
        unsafe { self.call(Command::LinkDetach, &mut attr) }.map(drop)
    }

    /// Attaches a program without a link, as others do.
    #[cfg(test)]
    pub(crate) fn attach(
        &self,
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        attach_type: u32,
        flags: u32,
    ) -> io::Result<()> {
        let attr = Attr::new().descriptor(0, cgroup).descriptor(4, program);
        let mut attr = attr.number(8, attach_type).number(12, flags);
        // SAFETY: it points to nothing.
        unsafe { self.call(Command::ProgramAttach, &mut attr) }.map(drop)
    }

    #[cfg(test)]
    pub(crate) fn detach(
        &self,
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        attach_type: u32,
    ) -> io::Result<()> {
        let mut attr = Attr::new().descriptor(0, cgroup).descriptor(4, program).number(8, attach_type);
        // SAFETY: it points to nothing.
        unsafe { self.call(Command::ProgramDetach, &mut attr) }.map(drop)
    }

    /// How many programs are attached to a cgroup itself.
    #[cfg(test)]
    pub(crate) fn attached(&self, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<u32> {
        let mut attr = Attr::new().descriptor(0, cgroup).number(4, attach_type);
        // SAFETY: it points to nothing; without room for numbers the kernel only counts.
        match unsafe { self.call(Command::ProgramQuery, &mut attr) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOSPC) => Err(error),
            _ => Ok(attr.get(24)),
        }
    }

    pub(crate) fn update_link(&self, link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = Attr::new().descriptor(0, link).descriptor(4, program);
        // SAFETY: it points to nothing.
        unsafe { self.call(Command::LinkUpdate, &mut attr) }.map(drop)
    }
}

/// A map, and what the kernel tells of it.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    pub(crate) info: MapInfo,
}

impl Map {
    pub(crate) fn new(bpf: &Bpf, fd: OwnedFd) -> io::Result<Self> {
        let info = bpf.map_info(fd.as_fd())?;
        Ok(Self { fd, info })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn check(&self, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        let is_of_size = usize_of(self.info.key_bytes) == key.len()
            && value.is_none_or(|value| usize_of(self.info.value_bytes) == value.len());
        if is_of_size { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

fn usize_of(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// All that is passed is far shorter.
fn len<T>(slice: &[T]) -> u32 {
    u32::try_from(slice.len()).unwrap_or(u32::MAX)
}
