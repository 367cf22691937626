//! A model's weights on a device: queries, keys and values as one matrix, gate and up as another, and those of a layer's
//! experts as one of each.

use std::sync::Arc;

use half::bf16;
use zipserv::gpu::{Buffer, Device, DeviceMatrix, OutputType, Stream, ViewMut};
use zipserv_engine_kernels::experts::ROWS;

use super::{
    ahead::Ahead,
    dense::DenseMatrix,
    part::Part,
    piece::Piece,
    product::{Bias, Matrix, Product},
};
use crate::{
    Config, Result,
    models::{self, Layer as NamedLayer, Linear, Model, Weight},
    weights::{Stored, Weights},
};

/// A layer's.
pub struct Layer {
    pub attention_norm: Buffer<bf16>,
    pub qkv: Product,
    /// Gains of queries, and of keys.
    pub head_norms: Option<[Buffer<bf16>; 2]>,
    pub output: Product,
    pub window: Option<usize>,
    pub feed_forward_norm: Buffer<bf16>,
    pub feed_forward: FeedForward,
}

impl Layer {
    /// Its dense block, if it has that.
    pub fn mlp(&self) -> Option<&Mlp> {
        match &self.feed_forward {
            FeedForward::Dense(mlp) => Some(mlp),
            FeedForward::Experts(_) => None,
        }
    }

    /// Its experts, if it has some.
    pub fn experts(&self) -> Option<&Experts> {
        match &self.feed_forward {
            FeedForward::Dense(_) => None,
            FeedForward::Experts(experts) => Some(experts),
        }
    }
}

/// What follows attention.
#[expect(clippy::large_enum_variant, reason = "a layer has one")]
pub enum FeedForward {
    Dense(Mlp),
    Experts(Experts),
}

/// The same for each token.
pub struct Mlp {
    pub gate_up: Product,
    pub down: Product,
}

/// Stacks of all experts, each of which starts with a tile.
pub struct Experts {
    pub router: DeviceMatrix,
    pub gate_up: DeviceMatrix,
    pub down: DeviceMatrix,
}

/// All of a model's.
pub struct DeviceModel {
    /// Always compressed: rows are gathered from it.
    pub embedding: Arc<DeviceMatrix>,
    pub layers: Vec<Layer>,
    pub norm: Buffer<bf16>,
    /// What makes logits.
    pub head: Product,
}

impl DeviceModel {
    /// Reads one part of all weights, and packs it unless products are to be `dense`.
    pub fn load(
        stream: &Stream,
        config: &Config,
        weights: &Weights,
        part: Part,
        dense: bool,
    ) -> Result<Self> {
        let mut order = Vec::new();
        let model = Model::new(config, &mut |weight: Weight| {
            order.push(weight.clone());
            Ok(weight)
        })?;
        // The embedding comes with the head.
        order.rotate_left(1);
        Ahead::while_taken(weights, &order, part.of, |weights| {
            let loader = Loader {
                stream,
                weights,
                part,
                dense,
            };
            loader.model(config, &model)
        })
    }
}

struct Loader<'a> {
    stream: &'a Stream,
    weights: &'a Ahead<'a>,
    part: Part,
    dense: bool,
}

impl Loader<'_> {
    fn model(&self, config: &Config, model: &Model<Weight>) -> Result<DeviceModel> {
        let layers = model.layers.iter().map(|layer| self.layer(layer));
        let layers = layers.collect::<Result<_>>()?;
        let embedding = Arc::new(self.compressed(&[Piece::whole(&model.embedding)])?);
        let head = Piece::rows(model.head(), self.part.vocabulary(config.vocabulary));
        let head = match &model.head {
            None if !self.dense && head.is_whole() => Matrix::Compressed(embedding.clone()),
            _ => self.matrix(&[head])?,
        };
        Ok(DeviceModel {
            embedding,
            layers,
            norm: self.vector(&model.norm)?,
            head: Product {
                weights: head,
                bias: None,
                output: OutputType::F32,
            },
        })
    }

    fn device(&self) -> &Device {
        self.stream.device()
    }

    fn layer(&self, layer: &NamedLayer<Weight>) -> Result<Layer> {
        let attention = &layer.attention;
        Ok(Layer {
            attention_norm: self.vector(&layer.attention_norm)?,
            qkv: self.inner(&[&attention.q, &attention.k, &attention.v])?,
            head_norms: match &attention.head_norms {
                Some(norms) => Some([self.vector(&norms.q)?, self.vector(&norms.k)?]),
                None => None,
            },
            output: self.adding(&attention.output)?,
            window: attention.window,
            feed_forward_norm: self.vector(&layer.feed_forward_norm)?,
            feed_forward: match &layer.feed_forward {
                models::FeedForward::Dense(mlp) => FeedForward::Dense(Mlp {
                    gate_up: self.inner(&[&mlp.gate, &mlp.up])?,
                    down: self.adding(&mlp.down)?,
                }),
                models::FeedForward::Experts(block) => FeedForward::Experts(self.experts(block)?),
            },
        })
    }

    fn experts(&self, block: &models::Experts<Weight>) -> Result<Experts> {
        let experts = block.experts.iter();
        let gate_up: Vec<_> = experts
            .clone()
            .map(|expert| [&expert.gate.weight, &expert.up.weight].map(Piece::whole))
            .collect();
        let down: Vec<_> = experts
            .map(|expert| [Piece::whole(&expert.down.weight)])
            .collect();
        Ok(Experts {
            router: self.compressed(&[Piece::whole(&block.router)])?,
            gate_up: self.stack(&gate_up, ROWS)?,
            down: self.stack(&down, ROWS)?,
        })
    }

    /// Matrices of the same inputs, whose outputs follow one another: of each the part's rows.
    fn inner(&self, of: &[&Linear<Weight>]) -> Result<Product> {
        let rows = |weight| {
            let whole = Piece::whole(weight);
            Piece::rows(weight, self.part.range(whole.rows.len()))
        };
        let weights: Vec<_> = of.iter().map(|linear| rows(&linear.weight)).collect();
        let biases = of.iter().filter_map(|linear| linear.bias.as_ref());
        let biases: Vec<_> = biases.map(rows).collect();
        Ok(Product {
            weights: self.matrix(&weights)?,
            bias: match &biases[..] {
                [] => None,
                biases => Some(Bias::Bf16(self.upload(biases)?)),
            },
            output: OutputType::Bf16,
        })
    }

    /// A matrix of which all parts' outputs are added to the state: the part's columns. The first part has the bias.
    fn adding(&self, of: &Linear<Weight>) -> Result<Product> {
        let mut piece = Piece::whole(&of.weight);
        piece.columns = self.part.range(piece.columns.len());
        let bias = match &of.bias {
            Some(bias) if self.part.index == 0 => {
                let stored = self.weights.take(bias)?;
                let values = stored.values();
                Some(match self.dense {
                    true => {
                        let wide: Vec<_> = values.iter().copied().map(f32::from).collect();
                        Bias::F32(Buffer::from_slice(self.device(), &wide)?)
                    }
                    false => Bias::Bf16(Buffer::from_slice(self.device(), &values)?),
                })
            }
            _ => None,
        };
        Ok(Product {
            weights: self.matrix(&[piece])?,
            bias,
            output: OutputType::F32,
        })
    }

    fn matrix(&self, pieces: &[Piece]) -> Result<Matrix> {
        Ok(match self.dense {
            true => Matrix::Dense(self.dense(&[pieces], 1)?),
            false => Matrix::Compressed(Arc::new(self.compressed(pieces)?)),
        })
    }

    fn compressed(&self, pieces: &[Piece]) -> Result<DeviceMatrix> {
        let [piece] = pieces else {
            return self.stack(&[pieces], 1);
        };
        let (rows, cols) = (piece.rows.len(), piece.columns.len());
        match self.take(piece)? {
            Stored::Matrix(matrix) => Ok(DeviceMatrix::upload(self.device(), &matrix)?),
            stored => {
                let values = Buffer::from_slice(self.device(), &stored.values())?;
                Ok(DeviceMatrix::encode(self.stream, &values, rows, cols)?)
            }
        }
    }

    /// Compressed on the device, where it is [dense](Self::dense) for that long.
    fn stack<'a>(
        &self,
        matrices: &[impl AsRef<[Piece<'a>]>],
        align: usize,
    ) -> Result<DeviceMatrix> {
        let DenseMatrix { values, rows, cols } = self.dense(matrices, align)?;
        Ok(DeviceMatrix::encode(self.stream, &values, rows, cols)?)
    }

    /// Matrices of equal sizes below one another, each of pieces below one another. Each starts at a multiple of `align`
    /// rows, with zeros before it.
    fn dense<'a>(&self, matrices: &[impl AsRef<[Piece<'a>]>], align: usize) -> Result<DenseMatrix> {
        let first = matrices[0].as_ref();
        let rows: usize = first.iter().map(|piece| piece.rows.len()).sum();
        let (stride, cols) = (rows.next_multiple_of(align), first[0].columns.len());
        let rows = matrices.len() * stride;
        let mut values = Buffer::zeroed(self.device(), rows * cols)?;
        for (index, pieces) in matrices.iter().enumerate() {
            let mut at = index * stride * cols;
            for piece in pieces.as_ref() {
                let weights = piece.rows.len() * cols;
                self.restore(piece, values.slice_mut(at..at + weights))?;
                at += weights;
            }
        }
        Ok(DenseMatrix { values, rows, cols })
    }

    /// Decoded on the device if it is stored as that has it.
    fn restore(&self, piece: &Piece, dense: ViewMut<bf16>) -> Result<()> {
        match self.take(piece)? {
            Stored::Matrix(matrix) => {
                let matrix = DeviceMatrix::upload(self.device(), &matrix)?;
                matrix.decompress(self.stream, dense)?;
            }
            stored => dense.copy_from_slice(self.stream, &stored.values())?,
        }
        Ok(())
    }

    fn take(&self, piece: &Piece) -> Result<Stored> {
        piece.cut(self.weights.take(piece.weight)?)
    }

    fn vector(&self, weight: &Weight) -> Result<Buffer<bf16>> {
        self.upload(&[Piece::whole(weight)])
    }

    fn upload(&self, pieces: &[Piece]) -> Result<Buffer<bf16>> {
        let mut values = Vec::new();
        for piece in pieces {
            values.extend_from_slice(&self.take(piece)?.values());
        }
        Ok(Buffer::from_slice(self.device(), &values)?)
    }
}
