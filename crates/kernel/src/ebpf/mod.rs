//! Programs at the sockets of a cgroup, with their maps and links pinned in a file system of type `bpf`, so that they outlive
//! this process.
//!
//! ```text
//! BPFFS/kube-proxy/ipv4/links/kp_connect4     one for each program; an update replaces the program behind it
//!                      /original-1, ...       what sockets keep, for programs of any generation
//!                      /3-7/frontends, ...    maps of a generation: schema and number
//! ```
//!
//! A generation is made beside the one in force, filled, and marked complete; then the programs behind the links are replaced, and
//! only then the old one is removed. Whoever is interrupted leaves one complete generation at least.

mod btf;
mod canary;
mod generation;
mod mapped;
#[cfg(test)]
mod neighbours;
mod sockets;
mod sys;

use std::fs::{self, File};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ebpf::{
    Capacity, Contents, Explained, FastPath, FastPathError, FastPathRemoval, Hook, Instruction, MapKind,
    MapName, Meta, Program, Renumbered, SCHEMA, VerifierLog, Write, programs,
};
use model::{Family, FrontendKey, IpFamily};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use canary::{Canary, Kind};
use generation::Generation;
pub use sockets::{Endings, EndingsError, FlowsAndSockets, TellEnded};
use sys::Map;
pub use sys::{Bpf, Gate};

/// Where programs are attached, and where they are pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FastPathPlace {
    /// A directory of a file system of type `cgroup2`: for the sockets of all processes below.
    pub cgroup_root: PathBuf,
    /// A directory of a file system of type `bpf`.
    pub bpffs: PathBuf,
}

/// A family's programs and maps in the kernel.
#[derive(Debug)]
pub struct KernelFastPath<F: Family> {
    bpf: Bpf,
    place: FastPathPlace,
    /// Ours alone while this lives.
    dir: PathBuf,
    _lock: File,
    cgroup: File,
    original: Map,
    /// `None`: no program is run for datagrams.
    datagrams: Option<Map>,
    generation: Option<Generation<F>>,
    family: PhantomData<F>,
}

/// They count up with every change of what sockets keep.
const ORIGINAL: &str = "original-1";
const DATAGRAMS: &str = "datagrams-1";
const LINKS: &str = "links";

fn refused<O: ToString>(action: &'static str, object: O) -> impl FnOnce(io::Error) -> FastPathError {
    move |source| FastPathError::Refused { action, object: object.to_string(), source }
}

fn family_dir(bpffs: &Path, family: IpFamily) -> PathBuf {
    bpffs.join("kube-proxy").join(match family {
        IpFamily::V4 => "ipv4",
        IpFamily::V6 => "ipv6",
    })
}

/// Whether a path is in a file system of this kind.
fn require(path: &Path, kind: FsType, wanted: &'static str) -> Result<(), FastPathError> {
    match statfs(path) {
        Ok(found) if found.filesystem_type() == kind => Ok(()),
        Ok(_) => Err(FastPathError::FileSystem { path: path.to_owned(), wanted }),
        Err(errno) => Err(refused("look at", path.display())(errno.into())),
    }
}

impl<F: Family> KernelFastPath<F> {
    /// Takes what is pinned there for its own. Nothing else is read or changed yet.
    ///
    /// # Errors
    /// The file systems are none of these, somebody else has it, or the kernel refuses programs of ours.
    pub fn open(place: FastPathPlace, bpf: Bpf) -> Result<Self, FastPathError> {
        if cfg!(target_endian = "big") {
            return Err(FastPathError::Endianness);
        }
        require(&place.bpffs, BPF_FS_MAGIC, "bpf")?;
        require(&place.cgroup_root, CGROUP2_SUPER_MAGIC, "cgroup2")?;
        let dir = family_dir(&place.bpffs, F::FAMILY);
        fs::create_dir_all(dir.join(LINKS)).map_err(refused("make", dir.display()))?;
        let lock = lock(&dir)?;
        let opened =
            File::open(&place.cgroup_root).map_err(refused("open", place.cgroup_root.display())).and_then(
                |cgroup| Ok((cgroup, open_in_sockets::<F>(&bpf, MapName::Original, &dir.join(ORIGINAL))?)),
            );
        // What an earlier process left would go on to endpoints of its time.
        let (cgroup, original) = opened.inspect_err(|_| stop_translation(&bpf, &dir, F::FAMILY))?;
        let (datagrams, generation, family) = (None, None, PhantomData);
        Ok(Self { bpf, place, dir, _lock: lock, cgroup, original, datagrams, generation, family })
    }

    /// With programs that are run for each datagram of UDP whose address is given with it, and for its answer.
    ///
    /// # Errors
    /// The kernel refuses what they keep in sockets.
    pub fn with_datagrams(mut self) -> Result<Self, FastPathError> {
        let opened = open_in_sockets::<F>(&self.bpf, MapName::Datagrams, &self.dir.join(DATAGRAMS));
        let opened = opened.inspect_err(|_| stop_translation(&self.bpf, &self.dir, F::FAMILY))?;
        self.datagrams = Some(opened);
        Ok(self)
    }

    /// Loads each program as it is now and gives the verifier's statistics.
    ///
    /// # Errors
    /// One can't be loaded, or there are no maps.
    pub fn verify(&self) -> Result<Vec<(&'static str, String)>, FastPathError> {
        let verified = self.programs().map(|program| Ok((program.name, self.load(program)?.1)));
        verified.collect()
    }

    fn load(&self, program: &Program) -> Result<(std::os::fd::OwnedFd, String), FastPathError> {
        let generation = self.generation.as_ref().ok_or(FastPathError::NoMaps)?;
        let descriptor = |name: &str| {
            let map = match MapName::in_source(name) {
                Some(MapName::Original) => Some(&self.original),
                Some(MapName::Datagrams) => self.datagrams.as_ref(),
                Some(name) => generation.map(name),
                None => None,
            };
            map.map(|map| map.fd().as_raw_fd()).ok_or(FastPathError::NoMaps)
        };
        let mut code: Vec<Instruction> = Vec::with_capacity(program.lines.len() * 2);
        for line in program.lines {
            code.extend(line.instructions(descriptor)?);
        }
        let loaded =
            self.bpf.load_program(program.name, sys::Kind::SocketAddress(program.hook.attach_type()), &code);
        loaded.map_err(|(source, log)| FastPathError::Program {
            program: program.name,
            log: VerifierLog(last_lines(&log)),
            source,
        })
    }

    /// What is not wanted any more translates no more; what shows where datagrams came from stays, for those that are on their way.
    fn link_all(&self) -> Result<(), FastPathError> {
        self.programs().try_for_each(|program| self.link(program))?;
        let is_unwanted = |program: &&Program| self.datagrams.is_none() && program.hook.is_for_datagrams();
        for program in programs(F::FAMILY).iter().filter(is_unwanted).filter(|it| it.hook.translates()) {
            stop(&self.bpf, &self.dir.join(LINKS).join(program.name));
        }
        Ok(())
    }

    /// Those that are to run.
    fn programs(&self) -> impl Iterator<Item = &'static Program> + use<'_, F> {
        let is_wanted = |program: &&Program| self.datagrams.is_some() || !program.hook.is_for_datagrams();
        programs(F::FAMILY).iter().filter(is_wanted)
    }

    /// Removes the maps that no program uses any more.
    fn remove_others(&self) -> Result<(), FastPathError> {
        let current = self.generation.as_ref().map(Generation::dir);
        for (_, _, dir) in self.generations()? {
            if Some(&*dir) != current {
                remove_generation(&dir);
            }
        }
        Ok(())
    }

    /// Has a program run in place of whichever is behind its link.
    fn link(&self, program: &Program) -> Result<(), FastPathError> {
        let (loaded, _) = self.load(program)?;
        let path = self.dir.join(LINKS).join(program.name);
        if self.is_linked(&path, program.hook)?.is_some_and(|link| {
            // A link that has no cgroup any more says so (`ENOLINK`).
            self.bpf.update_link(link.as_fd(), loaded.as_fd()).is_ok()
        }) {
            return Ok(());
        }
        // Two programs would run one after the other: the second takes the first one's endpoint for where the socket wants to go.
        stop(&self.bpf, &path);
        let (cgroup, attach_type) = (self.cgroup.as_fd(), program.hook.attach_type());
        let link = self
            .bpf
            .create_link(loaded.as_fd(), cgroup, attach_type)
            .map_err(refused("attach", program.name))?;
        self.bpf.pin(link.as_fd(), &path).map_err(refused("pin", path.display()))
    }

    /// The link that is pinned there, if it is one to our cgroup.
    fn is_linked(&self, path: &Path, hook: Hook) -> Result<Option<std::os::fd::OwnedFd>, FastPathError> {
        let cgroup =
            self.cgroup.metadata().map_err(refused("look at", self.place.cgroup_root.display()))?.ino();
        let Some(link) = self.bpf.pinned(path).map_err(refused("open", path.display()))? else {
            return Ok(None);
        };
        let info = self.bpf.link_info(link.as_fd()).map_err(refused("look at", path.display()))?;
        Ok((info.cgroup == cgroup && info.attach_type == hook.attach_type()).then_some(link))
    }

    /// The generations' directories by number, of any schema.
    fn generations(&self) -> Result<Vec<(u32, u64, PathBuf)>, FastPathError> {
        let entries = fs::read_dir(&self.dir).map_err(refused("list", self.dir.display()))?;
        let parse = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let (schema, number) = name.to_str()?.split_once('-')?;
            Some((schema.parse().ok()?, number.parse().ok()?, entry.path()))
        };
        let mut found: Vec<_> = entries.filter_map(Result::ok).filter_map(parse).collect();
        found.sort_by_key(|(_, number, _)| *number);
        Ok(found)
    }

    /// The last complete generation of our schema.
    fn adopt(&self) -> Result<Option<Generation<F>>, FastPathError> {
        for (schema, _, dir) in self.generations()?.into_iter().rev() {
            if schema == SCHEMA
                && let Some(generation) = Generation::open(&self.bpf, &dir)?
                && generation.meta(Meta::Complete) != 0
            {
                return Ok(Some(generation));
            }
        }
        Ok(None)
    }

    fn store_meta(&self, word: Meta, value: u64) {
        if let Some(generation) = &self.generation {
            generation.set_meta(word, value);
        }
    }

    fn fly(&self, to: std::net::SocketAddr, kind: Kind) -> Result<(), FastPathError> {
        let unproven =
            |what: String| FastPathError::Unproven { to, what, cgroup: self.place.cgroup_root.clone() };
        let failed = |error: io::Error| unproven(format!("can't be made: {error}"));
        let Some(canary) = Canary::new(F::FAMILY, to, kind).map_err(failed)? else { return Ok(()) };
        let (cookie, port) = (canary.cookie().map_err(failed)?, canary.port_be().map_err(failed)?);
        self.store_meta(Meta::CanaryPort, port);
        self.store_meta(Meta::CanarySocket, cookie);
        let flown = canary.fly();
        self.store_meta(Meta::CanarySocket, 0);
        flown.map_err(unproven)
    }
}

impl<F: Family> FastPath<F> for KernelFastPath<F> {
    fn read(&mut self) -> Result<Option<Contents<F>>, FastPathError> {
        if self.generation.is_none() {
            self.generation = self.adopt()?;
        }
        self.generation.as_ref().map(|generation| generation.read(&self.bpf)).transpose()
    }

    fn rebuild(&mut self, contents: &Contents<F>, renumbered: &[Renumbered]) -> Result<(), FastPathError> {
        check_capacity(&contents.capacity)?;
        let number = self.generations()?.last().map_or(1, |(_, number, _)| number + 1);
        let dir = self.dir.join(format!("{SCHEMA}-{number}"));
        let made = Generation::create(&self.bpf, &dir, contents).inspect_err(|_| remove_generation(&dir))?;
        if let Some(before) = &self.generation {
            made.set_meta(Meta::HostNetns, before.meta(Meta::HostNetns));
        }
        let before = self.generation.replace(made);
        if let Err(error) = self.link_all() {
            // Programs that use the new maps already translate nothing, since those were never switched on.
            self.generation = before;
            remove_generation(&dir);
            return Err(error);
        }
        if let (Some(made), Some(before)) = (&self.generation, &before) {
            made.go_on_counting(before, renumbered);
        }
        self.remove_others()
    }

    fn attach(&mut self) -> Result<(), FastPathError> {
        self.link_all()?;
        self.remove_others()
    }

    fn write(&mut self, writes: &[Write<F>]) -> Result<(), FastPathError> {
        let generation = self.generation.as_ref().ok_or(FastPathError::NoMaps)?;
        writes.iter().try_for_each(|write| generation.write(&self.bpf, write))
    }

    fn switch(&mut self, on: bool) {
        if self.generation.is_none() && !on {
            // Maps of another layout may be in force, which can't be switched off.
            stop_translation(&self.bpf, &self.dir, F::FAMILY);
        }
        self.store_meta(Meta::On, u64::from(on));
    }

    fn prove(&mut self) -> Result<(), FastPathError> {
        for to in canary::destinations(F::FAMILY) {
            self.fly(to, Kind::Connection)?;
            if self.datagrams.is_some() {
                self.fly(to, Kind::Datagram)?;
            }
        }
        if let Some(generation) = &self.generation {
            generation.set_meta(Meta::HostNetns, generation.meta(Meta::CanaryNetns));
        }
        Ok(())
    }

    fn look_up(&mut self, key: &FrontendKey<F>) -> Result<Option<Explained<F>>, FastPathError> {
        self.generation.as_ref().ok_or(FastPathError::NoMaps)?.look_up(&self.bpf, key)
    }

    fn translated(&self, endpoint: u32) -> u64 {
        self.generation.as_ref().map_or(0, |generation| generation.translated(endpoint))
    }
}

fn check_capacity(capacity: &Capacity) -> Result<(), FastPathError> {
    FastPathError::of_capacity(capacity).map_or(Ok(()), Err)
}

/// What sockets keep: made once, and there for every generation.
fn open_in_sockets<F: Family>(bpf: &Bpf, name: MapName, path: &Path) -> Result<Map, FastPathError> {
    let failed = |action| refused(action, path.display());
    if let Some(found) = bpf.pinned(path).map_err(failed("open"))? {
        return Map::new(bpf, found).map_err(failed("look at"));
    }
    // Of no matter for a map without a limit.
    let capacity = Capacity { frontends: 0, slots: 0, endpoints: 0 };
    let spec = name.spec(F::FAMILY, &capacity);
    let is_locked = spec.kind == MapKind::LockedSocketStorage;
    let types = btf::of_value(spec.value_bytes, is_locked);
    let types = bpf.load_btf(&types).map_err(failed("load the types of"))?;
    let title = format!("kp_{}", name.as_str());
    let made = bpf.create_map(&title, &spec, Some(types.as_fd())).map_err(failed("make"))?;
    bpf.pin(made.as_fd(), path).map_err(failed("pin"))?;
    Map::new(bpf, made).map_err(failed("look at"))
}

/// Takes away what translates, whatever maps it uses. Best effort: without privileges nothing else could be done either.
fn stop_translation(bpf: &Bpf, dir: &Path, family: IpFamily) {
    translating(dir, family).for_each(|path| stop(bpf, &path));
}

fn stop(bpf: &Bpf, path: &Path) {
    // Without its pin alone, the program would go on for a moment (`bpf_link_put` leaves the end to a queue of work), beside one that
    // is attached anew.
    if let Ok(Some(link)) = bpf.pinned(path) {
        drop(bpf.detach_link(link.as_fd()));
    }
    drop(fs::remove_file(path));
}

/// Links of programs that translate.
fn translating(dir: &Path, family: IpFamily) -> impl Iterator<Item = PathBuf> {
    let programs = programs(family).iter().filter(|program| program.hook.translates());
    let links = dir.join(LINKS);
    programs.map(move |program| links.join(program.name))
}

/// Best effort: what stays is removed with the next generation, or by a cleanup.
fn remove_generation(dir: &Path) {
    for name in MapName::OF_GENERATION {
        drop(fs::remove_file(dir.join(name.as_str())));
    }
    drop(fs::remove_dir(dir));
}

/// The verifier says at the end what is wrong.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}

/// The directory as one process's own, until this is closed.
fn lock(dir: &Path) -> Result<File, FastPathError> {
    let lock = File::open(dir).map_err(refused("open", dir.display()))?;
    if lock.try_lock().is_err() {
        return Err(FastPathError::Busy { path: dir.to_owned() });
    }
    Ok(lock)
}

/// Takes away what is pinned below a directory; gives what. Nothing is there, nothing is done.
///
/// # Errors
/// Something can't be removed, or a process serves with it. All else is removed.
pub fn remove_fast_path(bpffs: &Path, what: FastPathRemoval) -> Result<Vec<String>, FastPathError> {
    let (mut removed, mut failure) = (Vec::new(), None);
    for family in [IpFamily::V4, IpFamily::V6] {
        let dir = family_dir(bpffs, family);
        if !dir.exists() {
            continue;
        }
        let _lock = match lock(&dir) {
            Ok(lock) => lock,
            Err(error) => {
                failure = Some(error);
                continue;
            }
        };
        for path in paths(&dir, family, what) {
            match fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)) {
                Ok(()) => removed.push(path.display().to_string()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failure = Some(refused("remove", path.display())(error)),
            }
        }
    }
    if what == FastPathRemoval::Everything {
        drop(fs::remove_dir(bpffs.join("kube-proxy")));
    }
    failure.map_or(Ok(removed), Err)
}

/// What is to be removed, in the order in which it can be: first what translates.
fn paths(dir: &Path, family: IpFamily, what: FastPathRemoval) -> Vec<PathBuf> {
    let children = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten();
        entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
    };
    let links = dir.join(LINKS);
    let mut paths: Vec<PathBuf> = translating(dir, family).collect();
    let all = what == FastPathRemoval::Everything;
    if all {
        paths.extend(children(&links));
        paths.push(links.clone());
    }
    for child in children(dir).into_iter().filter(|child| *child != links) {
        let is_in_sockets = child.file_name().is_some_and(|name| name == ORIGINAL || name == DATAGRAMS);
        if all || !is_in_sockets {
            paths.extend(children(&child));
            paths.push(child);
        }
    }
    paths.extend(all.then(|| dir.to_owned()));
    paths
}
