use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    path::{Path, PathBuf},
};

use super::{
    Error, ErrorKind,
    container::{Container, Form},
    folder::{Index, Listing},
    header::Tensor,
    layout::unsuited,
    source::Source,
};
use crate::{CompressedMatrix, ExpertStack, MatrixHeader};

/// Opens what [`compress`](super::compress()) has made, an archive too, to load a model from it tensor by tensor. What
/// is not compressed is opened as well: there, all tensors are stored as they were.
///
/// `path` is a `.safetensors` file, an index of shards (`*.safetensors.index.json`), or a
/// folder. Of a folder count the shards that its index names, and without an index all
/// `.safetensors` files directly in it.
///
/// Headers are read and checked, with the shape of every compressed matrix and the length of all byte planes. The
/// contents of a tensor are read when it is asked for, into memory of its own, and those of matrices and planes are
/// checked then. Tensors that are stored as they were have no checksum of their own: [`inspect`](super::inspect) and
/// [`verify`](super::verify) check that of the whole file. What is read from a file that was written to since it was
/// opened is refused as [`ErrorKind::Changed`].
///
/// # Errors
/// [`Error`] names the file, and the tensor and offset where there is one.
///
/// ```
/// use zipserv::{checkpoint, decode};
///
/// # let folder = tempfile::tempdir()?;
/// # let (original, small) = (folder.path().join("model.safetensors"), folder.path().join("small.safetensors"));
/// # let json = r#"{"up.weight":{"dtype":"BF16","shape":[2,32,128],"data_offsets":[0,16384]},"norm.weight":{"dtype":"F32","shape":[2],"data_offsets":[16384,16392]}}"#;
/// # let mut file = (json.len() as u64).to_le_bytes().to_vec();
/// # file.extend(json.bytes());
/// # file.resize(file.len() + 16392, 0);
/// # std::fs::write(&original, file)?;
/// # checkpoint::compress(&original, &small, &checkpoint::Options::default())?;
/// let checkpoint = checkpoint::open(&small)?;
///
/// // The matrices go to the kernels as they are.
/// for name in checkpoint.names() {
///     let matrix = checkpoint.matrix(name)?;
///     println!("{name}: {} x {}, {:.2} bits a weight", matrix.rows(), matrix.cols(), matrix.bits_per_weight());
/// }
///
/// // Norms and biases are stored as they were.
/// let norm = checkpoint.tensor("norm.weight")?;
/// assert_eq!((norm.dtype(), norm.shape()), ("F32", &[2][..]));
/// assert_eq!(norm.bytes()?.len(), 8);
///
/// // A tensor of any number of dimensions is the matrix of all but the last by the last, or a stack of experts.
/// let up = checkpoint.tensor("up.weight")?;
/// assert_eq!(up.shape(), [2, 32, 128]);
/// assert_eq!((up.matrix()?.rows(), up.matrix()?.cols()), (64, 128));
/// assert_eq!((up.experts()?.experts(), up.experts()?.rows()), (2, 32));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint, Error> {
    let path = path.as_ref();
    if path.is_dir() {
        Checkpoint::of_folder(path)
    } else if Index::is_name(path) {
        Checkpoint::of_index(path, &Index::open(path)?)
    } else {
        Checkpoint::of_files(path, [path.into()])
    }
}

/// A checkpoint that is [`open`], compressed or not.
pub struct Checkpoint {
    /// As given, for errors.
    path: PathBuf,
    files: Vec<Container>,
    /// File and tensor by name.
    places: BTreeMap<String, (usize, usize)>,
}

impl Checkpoint {
    fn of_folder(path: &Path) -> Result<Self, Error> {
        let listing = Listing::of(path)?;
        let is_here = |path: &Path| path.parent() == Some(Path::new(""));
        let mut indexes = listing.indexes.iter().filter(|(path, _)| is_here(path));
        match (indexes.next(), indexes.next()) {
            (Some((name, index)), None) => Self::of_index(&path.join(name), index),
            (Some(_), Some(_)) => Err(Error::new(path, ErrorKind::SeveralIndexes)),
            (None, _) => {
                let files = listing.checkpoints.iter().filter(|path| is_here(path));
                let files: Vec<_> = files.map(|file| path.join(file)).collect();
                if files.is_empty() {
                    return Err(Error::new(path, ErrorKind::NoCheckpoint));
                }
                Self::of_files(path, files)
            }
        }
    }

    /// What an index at `path` names.
    fn of_index(path: &Path, index: &Index) -> Result<Self, Error> {
        let mut this = Self::empty(path);
        let folder = path.parent().unwrap_or(Path::new(""));
        let shards: BTreeSet<_> = index.weight_map.values().collect();
        for shard in shards {
            let file = Container::open_any(&folder.join(shard))?;
            let is_placed = |name: &str| index.weight_map.get(name) == Some(shard);
            // An index of an original folder has the original names.
            this.add(file, |name, stored| is_placed(stored) || is_placed(name))?;
        }
        let tensors = this.places.values().map(|&place| this.view(place));
        let names = tensors.flat_map(|tensor| [tensor.name(), tensor.stored_name()]);
        let names: HashSet<_> = names.collect();
        let mut placed = index.weight_map.iter();
        match placed.find(|(name, _)| !names.contains(name.as_str())) {
            None => Ok(this),
            Some((tensor, shard)) => {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                Err(Error::new(path, ErrorKind::IndexTensor { tensor, shard }))
            }
        }
    }

    /// All that is in some files.
    fn of_files(path: &Path, files: impl IntoIterator<Item = PathBuf>) -> Result<Self, Error> {
        let mut this = Self::empty(path);
        for file in files {
            this.add(Container::open_any(&file)?, |_, _| true)?;
        }
        Ok(this)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.into(),
            files: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    /// Adds the tensors of a file that are wanted, by original and stored name.
    fn add(
        &mut self,
        file: Container,
        is_wanted: impl Fn(&str, &str) -> bool,
    ) -> Result<(), Error> {
        for (index, tensor) in file.header().tensors.iter().enumerate() {
            if !is_wanted(&tensor.name, file.stored_name(index)) {
                continue;
            }
            let place = (self.files.len(), index);
            if let Some((other, _)) = self.places.insert(tensor.name.clone(), place) {
                let kind = ErrorKind::TensorInTwoFiles {
                    tensor: tensor.name.clone(),
                    other: self.files[other].path().into(),
                };
                return Err(Error::new(file.path(), kind));
            }
        }
        self.files.push(file);
        Ok(())
    }

    /// All tensors, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.places.values().map(|&place| self.view(place))
    }

    /// The names of the matrices that [`matrix`](Self::matrix) is for, in order: those that are stored compressed, and
    /// BF16 tensors stored as byte planes, as in an archive, whose shape suits the layout of the GPU.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let matrices = self.tensors().filter(TensorView::is_matrix);
        matrices.map(|tensor| tensor.name())
    }

    /// The names of all other tensors, in order: [`TensorView::decoded`] gives their bytes.
    pub fn other_names(&self) -> impl Iterator<Item = &str> {
        let others = self.tensors().filter(|tensor| !tensor.is_matrix());
        others.map(|tensor| tensor.name())
    }

    /// A tensor by its name in the original checkpoint, whichever way it is stored.
    ///
    /// # Errors
    /// [`ErrorKind::NoTensor`], with a name that is much alike if there is one.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, Error> {
        match self.places.get(name) {
            Some(&place) => Ok(self.view(place)),
            None => {
                let kind = ErrorKind::NoTensor {
                    tensor: name.into(),
                    near: near(name, self.places.keys()).cloned(),
                };
                Err(Error::new(&self.path, kind))
            }
        }
    }

    /// A compressed matrix by the name of its tensor: [`TensorView::matrix`] of
    /// [`tensor`](Self::tensor).
    ///
    /// # Errors
    /// Those of both.
    pub fn matrix(&self, name: &str) -> Result<CompressedMatrix<'static>, Error> {
        self.tensor(name)?.matrix()
    }

    /// As given, for errors.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn view(&self, (file, index): (usize, usize)) -> TensorView<'_> {
        let file = &self.files[file];
        TensorView { file, index }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("tensors", &self.places.len())
            .finish_non_exhaustive()
    }
}

/// A tensor of a [`Checkpoint`]: what it was, and access to how it is stored.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    file: &'a Container,
    index: usize,
}

impl<'a> TensorView<'a> {
    /// Its name in the original file.
    pub fn name(&self) -> &'a str {
        &self.original().name
    }

    /// Its name in the compressed file.
    pub fn stored_name(&self) -> &'a str {
        self.file.stored_name(self.index)
    }

    /// Its dtype as safetensors spells it: `BF16` if it is a compressed matrix.
    pub fn dtype(&self) -> &'a str {
        &self.original().dtype
    }

    /// Its dimensions in the original file, two or more if it is a compressed matrix.
    pub fn shape(&self) -> &'a [u64] {
        &self.original().shape
    }

    /// Bytes in the original file.
    pub fn original_bytes(&self) -> u64 {
        self.original().bytes()
    }

    /// Bytes in the compressed file.
    pub fn stored_bytes(&self) -> u64 {
        self.file.stored_bytes(self.index)
    }

    /// The file that has it.
    pub fn path(&self) -> &'a Path {
        self.file.path()
    }

    /// Whether it is stored as a compressed matrix or as byte planes.
    pub fn is_compressed(&self) -> bool {
        !matches!(self.form(), Form::Raw)
    }

    /// Whether it is stored as a compressed matrix, or as byte planes of which one would be made.
    fn is_matrix(&self) -> bool {
        match self.form() {
            Form::Matrix(..) => true,
            Form::Planes(_) => unsuited(self.original(), None).is_none(),
            Form::Raw => false,
        }
    }

    /// The header of its compressed matrix, and so all sizes; nothing for a tensor that is not stored as
    /// [`matrix`](Self::matrix) gives it. Unlike that this reads no more than was checked when the file was opened.
    pub fn header(&self) -> Option<&'a MatrixHeader> {
        match self.form() {
            Form::Matrix(header, _) => {
                let (rows, _) = self.original().matrix_shape()?;
                (header.rows() == rows).then_some(header)
            }
            _ => None,
        }
    }

    /// Its compressed matrix, read from the file and checked in full, in parallel on the current rayon pool. The leading
    /// dimensions count as rows, the last one as columns. BF16 tensors of two or more dimensions that are stored as byte
    /// planes, or as a stack of [`experts`](Self::experts) with padding between them, are restored and compressed in
    /// memory.
    ///
    /// # Errors
    /// [`ErrorKind::NoMatrix`] for all other tensors, and [`ErrorKind::Tensor`] when what is stored is damaged;
    /// [`ErrorKind::Changed`]; [`ErrorKind::Io`].
    pub fn matrix(&self) -> Result<CompressedMatrix<'static>, Error> {
        let matrix = self.file.matrix(self.index)?;
        matrix.ok_or_else(|| self.no_matrix())
    }

    /// The matrices of experts that a BF16 tensor of three or more dimensions is: all dimensions but the last two count
    /// experts. Read from the file and checked in full where each expert is stored from a tile of its own on, as
    /// compression has it unless that takes too much room; else restored, and compressed in memory.
    ///
    /// # Errors
    /// [`ErrorKind::NoStack`] for all other tensors, else as [`matrix`](Self::matrix).
    pub fn experts(&self) -> Result<ExpertStack<'static>, Error> {
        let experts = self.file.experts(self.index)?;
        experts.ok_or_else(|| {
            let kind = ErrorKind::NoStack {
                tensor: self.name().into(),
                dtype: self.dtype().into(),
                shape: self.shape().into(),
            };
            Error::new(self.path(), kind)
        })
    }

    pub(super) fn no_matrix(&self) -> Error {
        let kind = ErrorKind::NoMatrix {
            tensor: self.name().into(),
            dtype: self.dtype().into(),
            shape: self.shape().into(),
        };
        Error::new(self.path(), kind)
    }

    /// What fails with a matrix that is made of it.
    pub(super) fn error(&self, source: crate::Error) -> Error {
        self.file.damaged(self.index, source)
    }

    /// The bytes of a tensor stored as it was, read from the file: row after row, little-endian.
    ///
    /// # Errors
    /// [`ErrorKind::Compressed`] for others, [`decoded`](Self::decoded) takes all; [`ErrorKind::Changed`];
    /// [`ErrorKind::Io`].
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        match self.is_compressed() {
            false => self.file.stored(self.index),
            true => Err(Error::new(
                self.path(),
                ErrorKind::Compressed(self.name().into()),
            )),
        }
    }

    /// The bytes that the tensor has in the original file, decoded if it is compressed: what a loader
    /// does with an embedding, or where there is no kernel.
    ///
    /// # Errors
    /// [`ErrorKind::Tensor`] when a compressed matrix or byte planes are damaged; [`ErrorKind::Changed`];
    /// [`ErrorKind::Io`].
    pub fn decoded(&self) -> Result<Vec<u8>, Error> {
        self.file.decoded(self.index)
    }

    fn form(&self) -> &'a Form {
        self.file.form(self.index)
    }

    fn original(&self) -> &'a Tensor {
        &self.file.header().tensors[self.index]
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("TensorView")
            .field("name", &self.name())
            .field("dtype", &self.dtype())
            .field("shape", &self.shape())
            .field("is_compressed", &self.is_compressed())
            .finish_non_exhaustive()
    }
}

/// The name that shares the most with `name` at its start and end, if that is at least half of it.
fn near<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let shared = |other: &str| {
        let equal = |(a, b): &(u8, u8)| a == b;
        let start = name.bytes().zip(other.bytes()).take_while(equal).count();
        let rest = |name: &str| name.len() - start;
        let end = name.bytes().rev().zip(other.bytes().rev());
        let end = end.take(rest(name).min(rest(other))).take_while(equal);
        start + end.count()
    };
    let scored = names.map(|other| ((shared(other), Reverse(other.len())), other));
    let best = scored.max_by_key(|(score, _)| *score);
    best.filter(|((shared, _), _)| 2 * shared >= name.len().max(1))
        .map(|(_, other)| other)
}
