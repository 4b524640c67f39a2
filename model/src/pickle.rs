//! Checkpoints of PyTorch: the tensors in the zip files that `torch.save` writes since version 1.6.
//!
//! Such a file holds a pickle, `data.pkl`, which is a program that builds Python objects, and the
//! bytes of each storage in an entry of its own, not compressed. The program runs here on a machine
//! that has no functions: a call is a value that remembers what was called with what, and only
//! those that rebuild a tensor are ever understood. So a file can neither run code nor use more
//! than a bounded amount of memory. Of everything else, such as the state of an optimizer or of a
//! scheduler, no more is read than it takes to pass over it.
//!
//! Opcodes are those of Python's `pickletools`, protocols 2 to 5.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::Dtype;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use crate::error::ModelError;
use crate::weights_file::{Stored, Tensor, Tensors};

/// Longest pickle. OpenFlamingo 9B with its optimizer: below 1 MiB.
const PICKLE_BYTES_MAX: usize = 64 << 20;
/// Most opcodes that are run.
const OPCODES_MAX: usize = 1 << 24;
/// Most objects that are made: a tensor takes about 20.
const OBJECTS_MAX: usize = 1 << 22;
/// Most objects that are remembered for later use.
const MEMO_MAX: usize = 1 << 22;
/// Most marks that are open at once, as in a tuple inside a tuple. Python's own limit is 1000.
const NESTING_MAX: usize = 1000;
/// Most entries of a state dict. OpenFlamingo 9B: below 2000.
const TENSORS_MAX: usize = 1 << 18;
/// Most axes of a tensor, as in PyTorch.
const AXES_MAX: usize = 64;
/// Longest name that is kept or printed, in bytes.
const NAME_BYTES_MAX: usize = 1 << 10;
/// Parameters inside parameters that are followed.
const WRAPPED_MAX: usize = 8;
/// Where training checkpoints keep the model: OpenFlamingo, Lightning, many, `DeepSpeed`.
const STATE_DICT_KEYS: [&str; 4] = ["model_state_dict", "state_dict", "model", "module"];
/// What wrappers for checkpointing, sharding and compiling put into names.
const WRAPPERS: [&str; 3] = ["_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod."];
/// What wrappers for data-parallel training put in front of names.
const LEADING_WRAPPER: &str = "module.";

/// Why a file is not read as a checkpoint of PyTorch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// A checkpoint from before the zip format, or of another program altogether.
    #[error(
        "it is no zip file; one saved by PyTorch before 1.6 can be converted in Python with \
         `torch.save(torch.load(old, map_location=\"cpu\"), new)`"
    )]
    NotZip,
    /// The zip file is damaged.
    #[error("its zip directory cannot be read")]
    Zip {
        /// What the reader says.
        source: Box<ZipError>,
    },
    /// An entry of the zip file is missing or not as PyTorch writes it.
    #[error("zip entry `{entry}` {problem}")]
    Entry {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An opcode that no checkpoint needs.
    #[error("its pickle has opcode {code:#04x} at byte {at}, which is not known")]
    Opcode {
        /// The opcode.
        code: u8,
        /// Where it stands.
        at: usize,
    },
    /// The pickle is damaged.
    #[error("its pickle is damaged: {problem} at byte {at}")]
    Damaged {
        /// What is wrong.
        problem: &'static str,
        /// Where.
        at: usize,
    },
    /// The pickle asks for more than any checkpoint does.
    #[error("its pickle has more than {max} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The most that is read.
        max: usize,
    },
    /// The pickle holds no tensors by name.
    #[error("it holds {found}, expected a state dict: tensors by name")]
    NoStateDict {
        /// What it holds.
        found: String,
    },
    /// A tensor's description makes no sense.
    #[error("tensor `{name}` {problem}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Whether a file begins as a checkpoint of PyTorch does, of today or of long ago.
pub(crate) fn is_checkpoint(file: &[u8]) -> bool {
    file.starts_with(b"PK\x03\x04") || file.starts_with(&[opcode::PROTO])
}

/// A tensor's name without the parts that wrappers of its modules add.
pub(crate) fn unwrapped(name: &str) -> String {
    let name = WRAPPERS.iter().fold(name.to_owned(), |name, wrapper| name.replace(wrapper, ""));
    let mut bare = name.as_str();
    while let Some(rest) = bare.strip_prefix(LEADING_WRAPPER) {
        bare = rest;
    }
    bare.to_owned()
}

/// The tensors of a checkpoint by their unwrapped names; `path` names the file in messages.
///
/// What is not a tensor of a known kind is there too and refused when it is taken.
///
/// # Errors
/// When the file is not a checkpoint, is damaged or passes a limit, when a tensor does not lie
/// inside its storage, or when two tensors that differ have one unwrapped name.
pub(crate) fn state_dict(file: &Arc<Mmap>, path: &Path) -> Result<Tensors, ModelError> {
    let refused = |source| ModelError::Checkpoint { path: path.into(), source };
    let mut archive = Archive::open(file).map_err(refused)?;
    let pickle = archive.pickle().map_err(refused)?;
    let objects = Machine::run(pickle).map_err(refused)?;

    let mut tensors = BTreeMap::new();
    let mut n_tensors = 0;
    for (name, value) in objects.state_dict().map_err(refused)? {
        let broken = |problem| refused(PickleError::Tensor { name: name.to_owned(), problem });
        let tensor = match objects.tensor(value).map_err(broken)? {
            None => Tensor::refused_as(objects.describe(value)),
            Some(described) => {
                n_tensors += 1;
                let at = archive.entry(&format!("data/{}", described.storage)).map_err(refused)?;
                described.find(file, at.clone()).map_err(|needed| ModelError::TensorBytes {
                    path: path.into(),
                    name: name.into(),
                    start: at.start as u64,
                    end: at.end as u64,
                    needed,
                    available: file.len() as u64,
                })?
            }
        };
        // As in Python, the last of two equal keys counts.
        tensors.insert(name.to_owned(), tensor);
        if tensors.len() > TENSORS_MAX {
            return Err(refused(PickleError::Limit { what: "tensors", max: TENSORS_MAX }));
        }
    }
    if n_tensors == 0 {
        let found = "a dict without tensors".to_owned();
        return Err(refused(PickleError::NoStateDict { found }));
    }
    let mut tensors = Tensors::from_map(tensors);
    tensors.rename(unwrapped, path)?;
    Ok(tensors)
}

/// The zip file around a pickle and its storages.
struct Archive<'a> {
    file: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    /// The folder of all entries, named after the file that was first written.
    root: String,
}

impl<'a> Archive<'a> {
    fn open(file: &'a [u8]) -> Result<Self, PickleError> {
        if !file.starts_with(b"PK\x03\x04") {
            return Err(PickleError::NotZip);
        }
        let zip = ZipArchive::new(Cursor::new(file))
            .map_err(|source| PickleError::Zip { source: source.into() })?;
        let mut names = zip.file_names().filter_map(Result::ok);
        let root = names.find_map(|name| name.strip_suffix("/data.pkl").map(str::to_owned));
        let root = root.ok_or_else(|| missing("*/data.pkl"))?;
        drop(names);
        Ok(Self { file, zip, root })
    }

    /// The pickle.
    fn pickle(&mut self) -> Result<&'a [u8], PickleError> {
        if let Ok(order) = self.entry("byteorder")
            && &self.file[order] != b"little"
        {
            let entry = format!("{}/byteorder", self.root);
            return Err(PickleError::Entry { entry, problem: "is not `little`" });
        }
        let pickle = self.entry("data.pkl")?;
        if pickle.len() > PICKLE_BYTES_MAX {
            return Err(PickleError::Limit { what: "bytes", max: PICKLE_BYTES_MAX });
        }
        Ok(&self.file[pickle])
    }

    /// Where the bytes of an entry lie.
    fn entry(&mut self, name: &str) -> Result<Range<usize>, PickleError> {
        let entry = format!("{}/{name}", self.root);
        let index = self.zip.index_for_name(&entry).ok_or_else(|| missing(&entry))?;
        let found = self
            .zip
            .by_index_raw(index)
            .map_err(|source| PickleError::Zip { source: source.into() })?;
        let plain = found.compression() == CompressionMethod::Stored
            && !found.encrypted()
            && found.compressed_size() == found.size();
        if !plain {
            return Err(PickleError::Entry { entry, problem: "is compressed or encrypted" });
        }
        let size = usize::try_from(found.size()).ok();
        let start = found.data_start().and_then(|start| usize::try_from(start).ok());
        let end = start.zip(size).and_then(|(start, size)| start.checked_add(size));
        match start.zip(end) {
            Some((start, end)) if end <= self.file.len() => Ok(start..end),
            _ => Err(PickleError::Entry { entry, problem: "reaches beyond the end of the file" }),
        }
    }
}

fn missing(entry: &str) -> PickleError {
    PickleError::Entry { entry: entry.to_owned(), problem: "is not there" }
}

/// A tensor as a pickle describes it.
struct Described<'a> {
    dtype: Dtype,
    /// Name of its storage.
    storage: &'a str,
    /// Values in the storage.
    n_stored: usize,
    /// Values of the storage before the first of the tensor.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Described<'_> {
    /// The tensor, whose storage lies at these bytes of the file.
    ///
    /// # Errors
    /// How many bytes the storage would have to have, when it is too small.
    fn find(self, file: &Arc<Mmap>, storage: Range<usize>) -> Result<Tensor, u64> {
        let size = self.dtype.bitsize() / 8;
        let bytes = |values: usize, max: usize| {
            let bytes = values.checked_mul(size).filter(|bytes| *bytes <= max);
            bytes.ok_or((values as u64).saturating_mul(size as u64))
        };
        let stored = bytes(self.n_stored, storage.len())?;
        let skipped = bytes(self.offset, stored)?;
        let values = storage.start + skipped..storage.start + stored;
        let stored = Stored::new(file, self.dtype, values, &self.shape, &self.strides)
            .map_err(|needed| needed.saturating_add(skipped as u64))?;
        Ok(Tensor::stored(self.shape, stored))
    }
}

/// An object of the machine, by number.
type Id = u32;

/// What a pickle builds, as far as a state dict needs it.
#[derive(Debug)]
enum Object<'a> {
    /// Anything of no interest; says what, for messages.
    Other(&'static str),
    Int(i64),
    Str(&'a str),
    Tuple(Box<[Id]>),
    Dict(Vec<(Id, Id)>),
    /// A function or class by module and name.
    Global(&'a str, &'a str),
    /// What was called, or made an instance of, and the arguments. Nothing is called.
    Call(Id, Id),
    /// What stands for a storage.
    Persistent(Id),
}

/// All objects of a pickle and the one that it is about.
#[derive(Debug)]
struct Objects<'a> {
    all: Vec<Object<'a>>,
    root: Id,
}

impl<'a> Objects<'a> {
    fn get(&self, id: Id) -> &Object<'a> {
        &self.all[id as usize]
    }

    fn str(&self, id: Id) -> Option<&'a str> {
        if let Object::Str(text) = self.get(id) { Some(text) } else { None }
    }

    fn tuple(&self, id: Id) -> Option<&[Id]> {
        if let Object::Tuple(items) = self.get(id) { Some(items) } else { None }
    }

    /// A size or an offset.
    fn count(&self, id: Id) -> Option<usize> {
        if let Object::Int(n) = self.get(id) { usize::try_from(*n).ok() } else { None }
    }

    fn counts(&self, id: Id) -> Option<Vec<usize>> {
        let items = self.tuple(id).filter(|items| items.len() <= AXES_MAX)?;
        items.iter().map(|id| self.count(*id)).collect()
    }

    fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        if let Object::Dict(items) = self.get(id) { Some(items) } else { None }
    }

    /// Names and values of the model's state, found in a training checkpoint where need be.
    fn state_dict(&self) -> Result<impl Iterator<Item = (&'a str, Id)>, PickleError> {
        let none = || PickleError::NoStateDict { found: self.describe(self.root) };
        let mut dict = self.dict(self.root).ok_or_else(none)?;
        for _ in 0..WRAPPED_MAX {
            let inner = STATE_DICT_KEYS.iter().find_map(|key| {
                let mut items = dict.iter().rev();
                let (_, value) = items.find(|(name, _)| self.str(*name) == Some(key))?;
                self.dict(*value)
            });
            let Some(inner) = inner else { break };
            dict = inner;
        }
        let items = dict.iter().filter_map(|(name, value)| Some((self.str(*name)?, *value)));
        match items.clone().find(|(name, _)| name.len() > NAME_BYTES_MAX) {
            None => Ok(items),
            Some(_) => Err(PickleError::Limit { what: "bytes of a name", max: NAME_BYTES_MAX }),
        }
    }

    /// The tensor that an object is, or none.
    ///
    /// # Errors
    /// What is wrong with a tensor that makes no sense.
    fn tensor(&self, id: Id) -> Result<Option<Described<'a>>, &'static str> {
        let mut id = id;
        for _ in 0..WRAPPED_MAX {
            let Object::Call(function, arguments) = self.get(id) else { return Ok(None) };
            let Object::Global("torch._utils", function) = self.get(*function) else {
                return Ok(None);
            };
            let arguments = self.tuple(*arguments).ok_or("has no arguments")?;
            match *function {
                "_rebuild_tensor_v2" | "_rebuild_tensor" => return self.described(arguments),
                "_rebuild_parameter" | "_rebuild_parameter_with_state" => {
                    id = *arguments.first().ok_or("is an empty parameter")?;
                }
                _ => return Ok(None),
            }
        }
        Err("is wrapped too deeply")
    }

    /// The tensor that `_rebuild_tensor_v2(storage, offset, size, stride, ...)` makes; none if
    /// numbers of its kind are not known.
    fn described(&self, arguments: &[Id]) -> Result<Option<Described<'a>>, &'static str> {
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err("has too few arguments");
        };
        let Object::Persistent(storage) = self.get(*storage) else { return Err("has no storage") };
        let [kind, class, key, _location, n_stored] = self.tuple(*storage).unwrap_or_default()
        else {
            return Err("has no storage of five parts");
        };
        if self.str(*kind) != Some("storage") {
            return Err("has no storage");
        }
        let Object::Global("torch", class) = self.get(*class) else { return Ok(None) };
        let Some(dtype) = storage_type(class) else { return Ok(None) };
        let shape = self.counts(*shape).ok_or("has a shape that is not of sizes")?;
        let strides = self.counts(*strides).ok_or("has strides that are not of sizes")?;
        if shape.len() != strides.len() {
            return Err("has not as many strides as axes");
        }
        let storage = self.str(*key).filter(|key| key.len() <= NAME_BYTES_MAX);
        Ok(Some(Described {
            dtype,
            storage: storage.ok_or("has a storage without name")?,
            n_stored: self.count(*n_stored).ok_or("has a storage without size")?,
            offset: self.count(*offset).ok_or("has an offset that is not a size")?,
            shape,
            strides,
        }))
    }

    /// What an object is, for messages.
    fn describe(&self, id: Id) -> String {
        match self.get(id) {
            Object::Other(what) => (*what).to_owned(),
            Object::Int(_) => "a whole number".to_owned(),
            Object::Str(_) => "a string".to_owned(),
            Object::Tuple(_) => "a tuple".to_owned(),
            Object::Dict(_) => "a dict".to_owned(),
            Object::Persistent(_) => "a storage".to_owned(),
            Object::Global(..) => format!("the name {}", self.qualified(id)),
            Object::Call(function, _) => format!("a call of {}", self.qualified(*function)),
        }
    }

    fn qualified(&self, id: Id) -> String {
        let short = |text: &str| text.chars().take(NAME_BYTES_MAX / 16).collect::<String>();
        match self.get(id) {
            Object::Global(module, name) => format!("`{}.{}`", short(module), short(name)),
            _ => "what is no name".to_owned(),
        }
    }
}

/// The numbers in a storage of a class of module `torch`.
fn storage_type(class: &str) -> Option<Dtype> {
    Some(match class {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

/// The opcodes that are known.
mod opcode {
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const FRAME: u8 = 0x95;
    pub(super) const STOP: u8 = b'.';
    pub(super) const MARK: u8 = b'(';
    pub(super) const POP: u8 = b'0';
    pub(super) const POP_MARK: u8 = b'1';
    pub(super) const DUP: u8 = b'2';
    pub(super) const NONE: u8 = b'N';
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const LONG4: u8 = 0x8b;
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const BINUNICODE8: u8 = 0x8d;
    pub(super) const BINSTRING: u8 = b'T';
    pub(super) const SHORT_BINSTRING: u8 = b'U';
    pub(super) const BINBYTES: u8 = b'B';
    pub(super) const SHORT_BINBYTES: u8 = b'C';
    pub(super) const BINBYTES8: u8 = 0x8e;
    pub(super) const BYTEARRAY8: u8 = 0x96;
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const LIST: u8 = b'l';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const EMPTY_SET: u8 = 0x8f;
    pub(super) const ADDITEMS: u8 = 0x90;
    pub(super) const FROZENSET: u8 = 0x91;
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const DICT: u8 = b'd';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const STACK_GLOBAL: u8 = 0x93;
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const NEWOBJ: u8 = 0x81;
    pub(super) const NEWOBJ_EX: u8 = 0x92;
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
}

/// The machine that a pickle is a program for. Objects lie in one list and name each other by
/// number, so one that contains itself, or others a million deep, needs no care.
struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs a pickle to its end.
    fn run(program: &'a [u8]) -> Result<Objects<'a>, PickleError> {
        let mut machine = Self {
            program,
            at: 0,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        for _ in 0..OPCODES_MAX {
            let [code] = machine.array()?;
            if code == opcode::STOP {
                let root = machine.pop()?;
                return Ok(Objects { all: machine.objects, root });
            }
            if !(machine.push_plain(code)?
                || machine.put_together(code)?
                || machine.recall(code)?)
            {
                return Err(PickleError::Opcode { code, at: machine.at - 1 });
            }
        }
        Err(PickleError::Limit { what: "opcodes", max: OPCODES_MAX })
    }

    /// Opcodes that push what stands in the program; false for any other.
    fn push_plain(&mut self, code: u8) -> Result<bool, PickleError> {
        let object = match code {
            opcode::NONE => Object::Other("`None`"),
            opcode::NEWTRUE | opcode::NEWFALSE => Object::Other("a bool"),
            opcode::BININT => Object::Int(i32::from_le_bytes(self.array()?).into()),
            opcode::BININT1 => Object::Int(u8::from_le_bytes(self.array()?).into()),
            opcode::BININT2 => Object::Int(u16::from_le_bytes(self.array()?).into()),
            opcode::LONG1 => self.long::<1>()?,
            opcode::LONG4 => self.long::<4>()?,
            opcode::BINFLOAT => {
                self.slice(size_of::<f64>())?;
                Object::Other("a float")
            }
            opcode::SHORT_BINUNICODE => Object::Str(self.text::<1>()?),
            opcode::BINUNICODE => Object::Str(self.text::<4>()?),
            opcode::BINUNICODE8 => Object::Str(self.text::<8>()?),
            opcode::SHORT_BINSTRING => self.python2_string::<1>()?,
            opcode::BINSTRING => self.python2_string::<4>()?,
            opcode::SHORT_BINBYTES => self.bytes::<1>()?,
            opcode::BINBYTES => self.bytes::<4>()?,
            opcode::BINBYTES8 | opcode::BYTEARRAY8 => self.bytes::<8>()?,
            opcode::EMPTY_TUPLE => Object::Tuple(Box::default()),
            opcode::EMPTY_LIST => Object::Other("a list"),
            opcode::EMPTY_SET => Object::Other("a set"),
            opcode::EMPTY_DICT => Object::Dict(Vec::new()),
            opcode::GLOBAL => Object::Global(self.line()?, self.line()?),
            _ => return Ok(false),
        };
        self.push(object)?;
        Ok(true)
    }

    /// Opcodes that make objects of those on the stack; false for any other.
    fn put_together(&mut self, code: u8) -> Result<bool, PickleError> {
        match code {
            opcode::TUPLE => {
                let items = self.pop_to_mark()?;
                self.push(Object::Tuple(items.into()))?;
            }
            opcode::TUPLE1 | opcode::TUPLE2 | opcode::TUPLE3 => {
                let mut items = vec![0; usize::from(code - opcode::TUPLE1) + 1];
                for item in items.iter_mut().rev() {
                    *item = self.pop()?;
                }
                self.push(Object::Tuple(items.into()))?;
            }
            opcode::LIST | opcode::FROZENSET => {
                self.pop_to_mark()?;
                self.push(Object::Other("a list or set"))?;
            }
            opcode::DICT => {
                let items = self.pop_to_mark()?;
                let dict = self.push(Object::Dict(Vec::new()))?;
                self.set_items(dict, &items)?;
            }
            // What is built in has attributes: a state dict's are the versions of its modules.
            opcode::APPEND | opcode::BUILD => {
                self.pop()?;
                self.top()?;
            }
            opcode::APPENDS | opcode::ADDITEMS => {
                self.pop_to_mark()?;
                self.top()?;
            }
            opcode::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                let dict = self.top()?;
                self.set_items(dict, &[key, value])?;
            }
            opcode::SETITEMS => {
                let items = self.pop_to_mark()?;
                let dict = self.top()?;
                self.set_items(dict, &items)?;
            }
            opcode::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id: Id| match &self.objects[id as usize] {
                    Object::Str(text) => Ok(*text),
                    _ => Err(self.damaged("a name that is no string")),
                };
                let global = Object::Global(text(module)?, text(name)?);
                self.push(global)?;
            }
            opcode::REDUCE | opcode::NEWOBJ => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push_call(function, arguments)?;
            }
            opcode::NEWOBJ_EX => {
                let (_keywords, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.push_call(class, arguments)?;
            }
            opcode::BINPERSID => {
                let storage = self.pop()?;
                self.push(Object::Persistent(storage))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Opcodes that move what is there, and those that do nothing; false for any other.
    fn recall(&mut self, code: u8) -> Result<bool, PickleError> {
        match code {
            opcode::PROTO => drop(self.slice(1)?),
            opcode::FRAME => drop(self.slice(8)?),
            opcode::MARK if self.marks.len() == NESTING_MAX => {
                return Err(PickleError::Limit { what: "marks open", max: NESTING_MAX });
            }
            opcode::MARK => self.marks.push(self.stack.len()),
            opcode::POP => drop(self.pop()?),
            opcode::POP_MARK => drop(self.pop_to_mark()?),
            opcode::DUP => self.stack.push(self.top()?),
            opcode::BINPUT => {
                let [index] = self.array()?;
                self.remember(index.into())?;
            }
            opcode::LONG_BINPUT => {
                let index = u32::from_le_bytes(self.array()?);
                self.remember(index)?;
            }
            opcode::MEMOIZE => self.remember(self.memo.len() as u32)?,
            opcode::BINGET => {
                let [index] = self.array()?;
                self.push_remembered(index.into())?;
            }
            opcode::LONG_BINGET => {
                let index = u32::from_le_bytes(self.array()?);
                self.push_remembered(index)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn push(&mut self, object: Object<'a>) -> Result<Id, PickleError> {
        if self.objects.len() == OBJECTS_MAX {
            return Err(PickleError::Limit { what: "objects", max: OBJECTS_MAX });
        }
        let id = self.objects.len() as Id;
        self.objects.push(object);
        self.stack.push(id);
        Ok(id)
    }

    /// Pushes what a call gives: a new dict where an ordered one is made, else the call itself.
    fn push_call(&mut self, function: Id, arguments: Id) -> Result<(), PickleError> {
        let object = match (&self.objects[function as usize], &self.objects[arguments as usize]) {
            (Object::Global("collections", "OrderedDict"), Object::Tuple(items))
                if items.is_empty() =>
            {
                Object::Dict(Vec::new())
            }
            _ => Object::Call(function, arguments),
        };
        self.push(object).map(drop)
    }

    /// Adds keys and values, in turn, to a dict; what else takes items keeps none.
    fn set_items(&mut self, dict: Id, items: &[Id]) -> Result<(), PickleError> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.damaged("a key without value"));
        }
        if let Object::Dict(dict) = &mut self.objects[dict as usize] {
            dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        }
        Ok(())
    }

    fn remember(&mut self, index: u32) -> Result<(), PickleError> {
        let top = self.top()?;
        self.memo.insert(index, top);
        if self.memo.len() > MEMO_MAX {
            return Err(PickleError::Limit { what: "objects remembered", max: MEMO_MAX });
        }
        Ok(())
    }

    fn push_remembered(&mut self, index: u32) -> Result<(), PickleError> {
        let unknown = || self.damaged("an object that was never remembered");
        let id = *self.memo.get(&index).ok_or_else(unknown)?;
        self.stack.push(id);
        Ok(())
    }

    /// The object on top of the stack, which must lie above the last mark.
    fn top(&self) -> Result<Id, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.get(floor..).and_then(<[Id]>::last);
        top.copied().ok_or_else(|| self.damaged("nothing on the stack"))
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn damaged(&self, problem: &'static str) -> PickleError {
        PickleError::Damaged { problem, at: self.at }
    }

    /// The next `n` bytes of the program.
    fn slice(&mut self, n: usize) -> Result<&'a [u8], PickleError> {
        let rest = self.program.get(self.at..).unwrap_or_default();
        let slice = rest.get(..n).ok_or_else(|| self.damaged("the end comes too early"))?;
        self.at += n;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let slice = self.slice(N)?;
        slice.try_into().map_err(|_| self.damaged("the end comes too early"))
    }

    /// As many bytes as a number of `N` bytes before them says.
    fn counted<const N: usize>(&mut self) -> Result<&'a [u8], PickleError> {
        let length: [u8; N] = self.array()?;
        let length = length.iter().rev().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
        let length = usize::try_from(length).map_err(|_| self.damaged("a length too large"))?;
        self.slice(length)
    }

    fn text<const N: usize>(&mut self) -> Result<&'a str, PickleError> {
        let bytes = self.counted::<N>()?;
        std::str::from_utf8(bytes).map_err(|_| self.damaged("a string that is not UTF-8"))
    }

    /// A string of Python 2, which may hold anything.
    fn python2_string<const N: usize>(&mut self) -> Result<Object<'a>, PickleError> {
        let bytes = self.counted::<N>()?;
        Ok(std::str::from_utf8(bytes).map_or(Object::Other("bytes"), Object::Str))
    }

    fn bytes<const N: usize>(&mut self) -> Result<Object<'a>, PickleError> {
        self.counted::<N>()?;
        Ok(Object::Other("bytes"))
    }

    /// A whole number in two's complement, as long as it likes.
    fn long<const N: usize>(&mut self) -> Result<Object<'a>, PickleError> {
        let bytes = self.counted::<N>()?;
        if bytes.len() > size_of::<i64>() {
            return Ok(Object::Other("a large whole number"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; size_of::<i64>()];
        all[..bytes.len()].copy_from_slice(bytes);
        Ok(Object::Int(i64::from_le_bytes(all)))
    }

    /// The text up to the end of the line.
    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = self.program.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| self.damaged("the end comes too early"))?;
        let line = self.slice(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| self.damaged("a name that is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// A pickle of protocol 2 that is written by hand.
    #[derive(Clone, Default)]
    struct Pickle(Vec<u8>);

    impl Pickle {
        fn op(mut self, bytes: &[u8]) -> Self {
            self.0.extend_from_slice(bytes);
            self
        }

        fn global(self, module: &str, name: &str) -> Self {
            self.op(format!("c{module}\n{name}\n").as_bytes())
        }

        fn text(self, text: &str) -> Self {
            self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
        }

        fn int(self, n: i64) -> Self {
            self.op(b"\x8a\x08").op(&n.to_le_bytes())
        }

        fn tuple(self, items: &[i64]) -> Self {
            items.iter().fold(self.op(b"("), |p, n| p.int(*n)).op(b"t")
        }

        fn tensor(self, view: &View<'_>) -> Self {
            let View { class, key, n_stored, offset, shape, strides } = view;
            let storage = self
                .global("torch._utils", "_rebuild_tensor_v2")
                .op(b"((")
                .text("storage")
                .global("torch", class)
                .text(key)
                .text("cpu")
                .int(*n_stored);
            let placed = storage.op(b"tQ").int(*offset).tuple(shape).tuple(strides);
            placed.op(b"\x89").global("collections", "OrderedDict").op(b")RtR")
        }

        /// A file with this pickle and storages `0`, `1` and so on.
        fn file(&self, storages: &[&[u8]]) -> Vec<u8> {
            let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
            let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
            let mut add = |name: &str, bytes: &[u8]| {
                zip.start_file(name, plain).unwrap();
                zip.write_all(bytes).unwrap();
            };
            add("a/data.pkl", &self.0);
            add("a/byteorder", b"little");
            for (i, bytes) in storages.iter().enumerate() {
                add(&format!("a/data/{i}"), bytes);
            }
            zip.finish().unwrap().into_inner()
        }
    }

    #[derive(Clone, Copy)]
    struct View<'a> {
        class: &'a str,
        key: &'a str,
        n_stored: i64,
        offset: i64,
        shape: &'a [i64],
        strides: &'a [i64],
    }

    const SIX: View<'_> = View {
        class: "FloatStorage",
        key: "0",
        n_stored: 6,
        offset: 0,
        shape: &[2, 3],
        strides: &[3, 1],
    };

    fn six_bytes() -> Vec<u8> {
        [0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0].iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn opened(file: &[u8]) -> Result<Tensors, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.pt");
        std::fs::write(&path, file).unwrap();
        Tensors::open(&path)
    }

    /// The error of a file with its causes.
    fn refusal(file: &[u8]) -> String {
        let error = opened(file).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    }

    /// A state dict of one tensor, `w`.
    fn dict_of(view: &View<'_>) -> Pickle {
        Pickle::default().op(b"\x80\x02}").text("w").tensor(view).op(b"s.")
    }

    fn check_values(view: View<'_>, storage: &[u8], expected: &[f32]) {
        let tensors = opened(&dict_of(&view).file(&[storage])).unwrap();
        let shape: Vec<usize> = view.shape.iter().map(|n| *n as usize).collect();
        assert_eq!(tensors.shape("w"), Some(shape.as_slice()));
        assert_eq!(tensors.get("w"), Some(expected), "{:?} {:?}", view.shape, view.strides);
    }

    #[test]
    fn views_read_the_values_that_they_show() {
        let six = six_bytes();
        check_values(SIX, &six, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let transposed = View { shape: &[3, 2], strides: &[1, 3], ..SIX };
        check_values(transposed, &six, &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let column = View { offset: 1, shape: &[2], strides: &[3], ..SIX };
        check_values(column, &six, &[1.0, 4.0]);
        let permuted = View { shape: &[3, 1, 2], strides: &[1, 99, 3], ..SIX };
        check_values(permuted, &six, &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let expanded = View { offset: 4, shape: &[3, 2], strides: &[0, 1], ..SIX };
        check_values(expanded, &six, &[4.0, 5.0, 4.0, 5.0, 4.0, 5.0]);
        check_values(View { offset: 5, shape: &[], strides: &[], ..SIX }, &six, &[5.0]);
        check_values(View { offset: 6, shape: &[0, 7], strides: &[7, 1], ..SIX }, &six, &[]);
        let halves = View { class: "BFloat16Storage", n_stored: 12, offset: 11, ..SIX };
        check_values(View { shape: &[1], strides: &[1], ..halves }, &six, &[5.0]);
        let double =
            View { class: "DoubleStorage", n_stored: 1, shape: &[1], strides: &[1], ..SIX };
        check_values(double, &0.1_f64.to_le_bytes(), &[0.1]);
    }

    #[test]
    fn training_checkpoints_give_the_model_without_wrappers_and_pass_over_the_rest() {
        let moved = View { offset: 3, shape: &[3], strides: &[1], ..SIX };
        let wrapped = Pickle::default()
            .op(b"\x80\x02}(")
            .text("epoch")
            .int(3)
            .text("lr_scheduler_state_dict")
            .global("torch.optim.lr_scheduler", "LambdaLR")
            .op(b")\x81}")
            .text("last")
            .op(b"K\x01sb")
            .text("model_state_dict")
            .global("collections", "OrderedDict")
            .op(b")Rq\x07(")
            .text("module.x._checkpoint_wrapped_module.w")
            .tensor(&SIX)
            .text("module.p")
            .global("torch._utils", "_rebuild_parameter")
            .op(b"(")
            .tensor(&moved)
            .op(b"\x88)tR")
            .text("n")
            .tensor(&View {
                class: "LongStorage",
                key: "1",
                n_stored: 1,
                shape: &[],
                strides: &[],
                ..SIX
            })
            .text("_extra_state")
            .global("posix", "system")
            .text("true")
            .op(b"\x85R")
            .op(b"u}")
            .text("_metadata")
            .op(b"Nsb")
            .text("again")
            .op(b"h\x07u.");
        let file = wrapped.file(&[&six_bytes(), &[0; 8]]);
        let mut tensors = opened(&file).unwrap();
        let names: Vec<_> = tensors.names().collect();
        assert_eq!(names, ["_extra_state", "n", "p", "x.w"]);
        assert_eq!(tensors.get("x.w").unwrap().len(), 6);
        assert_eq!(tensors.get("p").unwrap(), [3.0, 4.0, 5.0]);
        let error = tensors.take("n", &[], Path::new("w.pt")).unwrap_err().to_string();
        assert_eq!(error, "w.pt: tensor `n` is I64, expected F32, F16, BF16 or F64");
        let error = tensors.take("_extra_state", &[], Path::new("w.pt")).unwrap_err().to_string();
        assert!(error.contains("`_extra_state` is a call of `posix.system`, exp"), "{error}");
    }

    #[test]
    fn hostile_and_damaged_pickles_end_in_errors() {
        let start = || Pickle::default().op(b"\x80\x02");
        let check = |pickle: Pickle, expected: &str| {
            let error = refusal(&pickle.file(&[&six_bytes()]));
            assert!(error.contains(expected), "{error}, expected {expected}");
        };
        let system = start().global("os", "system").text("true").op(b"\x85R.");
        check(system, "it holds a call of `os.system`, expected a state dict");
        check(start().op(&[b'('; 2000]).op(b"."), "more than 1000 marks open");
        check(start().op(b")").op(&vec![0x85; 1 << 20]).op(b"."), "it holds a tuple, expected");
        check(start().op(b"]").op(&vec![b'2'; 1 << 20]).op(b"."), "it holds a list, expected");
        let doubled = (0..60).fold(start().op(b")"), |p, _| p.op(b"q\x00h\x00\x86"));
        check(doubled.op(b"."), "it holds a tuple, expected");
        check(start().op(&vec![b'N'; OBJECTS_MAX + 1]), "more than 4194304 objects");
        check(start().op(b"}").op(&vec![b'2'; OPCODES_MAX]), "more than 16777216 opcodes");
        check(start().op(b"}q\x00").op(b"h\x01."), "an object that was never remembered");
        check(start().op(b"}(N.").op(b"."), "it holds");
        check(start().op(b"}(u("), "the end comes too early");
        check(start().op(b"}(s."), "nothing on the stack at byte");
        check(start().op(b"}(Nu."), "a key without value");
        check(start().op(b"u."), "no mark");
        check(start().op(b"X\xff\xff\xff\xff."), "the end comes too early");
        check(start().op(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff."), "the end comes too early");
        check(start().op(b"X\x01\0\0\0\xff."), "a string that is not UTF-8");
        check(start().op(b"I1\n."), "opcode 0x49 at byte 2");
        check(start().op(b"}."), "a dict without tensors");
        check(start().op(b"}q\x00h\x00h\x00s."), "a dict without tensors");

        let view = |view: View<'_>, expected: &str| check(dict_of(&view), expected);
        view(View { n_stored: 7, ..SIX }, "tensor `w` lies at bytes");
        view(View { n_stored: i64::MAX, ..SIX }, "tensor `w` lies at bytes");
        view(View { n_stored: -1, ..SIX }, "tensor `w` has a storage without size");
        view(View { offset: 1, ..SIX }, "but needs 28");
        view(View { offset: -1, ..SIX }, "tensor `w` has an offset that is not a size");
        view(View { offset: i64::MAX, ..SIX }, "tensor `w` lies at bytes");
        view(View { shape: &[2, -3], ..SIX }, "tensor `w` has a shape that is not of sizes");
        view(View { shape: &[2, 4], ..SIX }, "tensor `w` lies at bytes");
        view(View { shape: &[1 << 40, 1 << 40], ..SIX }, "but needs 18446744073709551615");
        view(View { shape: &[1 << 40], strides: &[0], ..SIX }, "tensor `w` lies at bytes");
        view(View { strides: &[i64::MAX, i64::MAX], ..SIX }, "tensor `w` lies at bytes");
        view(View { strides: &[-3, 1], ..SIX }, "tensor `w` has strides that are not of sizes");
        view(View { strides: &[1], ..SIX }, "has not as many strides as axes");
        view(View { shape: &[1; 65], strides: &[1; 65], ..SIX }, "a shape that is not of sizes");
        view(View { key: "9", ..SIX }, "`a/data/9` is not there");
        view(View { key: "../data.pkl", ..SIX }, "`a/data/../data.pkl` is not there");
        let torn = start().op(b"}").text("w").global("torch._utils", "_rebuild_tensor_v2");
        check(torn.clone().op(b")Rs."), "tensor `w` has too few arguments");
        check(torn.op(b"NRs."), "tensor `w` has no arguments");
        let named = |p: Pickle, _| p.global("torch._utils", "_rebuild_parameter");
        let nested = (0..20).fold(start().op(b"}").text("w"), named).op(b"N");
        let nested = (0..20).fold(nested, |p, _| p.op(b"\x85R"));
        check(nested.op(b"s."), "tensor `w` is wrapped too deeply");
    }

    #[test]
    fn what_is_not_a_plain_zip_file_is_refused_with_advice() {
        assert!(refusal(b"\x80\x02\x8a\x0al\xfc").contains("torch.save(torch.load(old"));
        assert!(refusal(b"").contains("it is no zip file"));
        assert!(refusal(b"PK\x03\x04").contains("its zip directory cannot be read"));
        let file = dict_of(&SIX).file(&[&six_bytes()]);
        let directory = file.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
        // Method and sizes of the first entry, the pickle.
        let with = |at: usize, bytes: &[u8]| {
            let mut file = file.clone();
            file[directory + at..][..bytes.len()].copy_from_slice(bytes);
            refusal(&file)
        };
        assert!(with(10, &[8, 0]).contains("`a/data.pkl`"), "{}", with(10, &[8, 0]));
        let long = [0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f];
        assert!(with(20, &long).contains("`a/data.pkl` reaches beyond"), "{}", with(20, &long));
        // One byte that differs anywhere is an error or harmless.
        for at in 0..file.len() {
            let mut file = file.clone();
            file[at] ^= 0xff;
            if let Ok(tensors) = opened(&file) {
                tensors.names().for_each(|name| drop(tensors.get(name).map(<[f32]>::to_vec)));
            }
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = dict_of(&SIX).file(&[&six_bytes()]);
        assert!(opened(&file).is_ok());
        for n in 0..file.len() {
            assert!(opened(&file[..n]).is_err(), "{n} of {} bytes", file.len());
        }
    }

    #[test]
    fn two_names_of_one_tensor_become_one_and_two_tensors_of_one_name_are_refused() {
        let two = |second: &View<'_>| {
            let first = Pickle::default().op(b"\x80\x02}(").text("module.w").tensor(&SIX);
            first.text("w").tensor(second).op(b"u.").file(&[&six_bytes(), &[0; 24]])
        };
        let tensors = opened(&two(&SIX)).unwrap();
        assert_eq!(tensors.names().collect::<Vec<_>>(), ["w"]);
        let error = refusal(&two(&View { key: "1", ..SIX }));
        assert!(error.contains("`module.w` and `w` both give tensor `w`"), "{error}");
    }

    #[test]
    fn checkpoints_of_open_flamingo_equal_its_weights_bit_by_bit() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/golden"));
        for (case, file) in [
            ("mpt-every1", "checkpoint.pt"),
            ("mpt-every1", "checkpoint_wrapped.pt"),
            ("mpt-every2", "checkpoint.pt"),
            ("neox-every2", "checkpoint.pt"),
            ("opt-every1", "checkpoint.pt"),
            ("llama-every1", "checkpoint.pt"),
        ] {
            let folder = root.join("openflamingo").join(case);
            if !folder.is_dir() {
                eprintln!("skipped: no golden case {}", folder.display());
                return;
            }
            let weights = Tensors::open(&folder.join("weights.safetensors")).unwrap();
            let checkpoint = Tensors::open(&folder.join(file)).unwrap();
            assert!(checkpoint.names().count() > 50);
            for name in checkpoint.names() {
                assert_eq!(checkpoint.shape(name), weights.shape(name), "{case}: {name}");
                let bits = |tensors: &Tensors| -> Vec<u32> {
                    tensors.get(name).unwrap().iter().map(|v| v.to_bits()).collect()
                };
                assert!(bits(&checkpoint) == bits(&weights), "{case}: {name}");
            }
        }
    }
}
