/// A linear layer of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What it is called.
    pub name: &'static str,
    /// Output features, M.
    pub rows: usize,
    /// Input features, K.
    pub cols: usize,
}

/// A model and its linear layers, fused as serving engines fuse them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Its layers.
    pub layers: &'static [Layer],
}

macro_rules! layers {
    ($($name:literal $rows:literal x $cols:literal),*) => {
        &[$(Layer { name: $name, rows: $rows, cols: $cols }),*]
    };
}

/// The models of the benchmarks: 17 layers.
pub const MODELS: &[Model] = &[
    Model {
        name: "llama-3.1-8b",
        layers: layers!["qkv" 6144 x 4096, "o" 4096 x 4096, "gate+up" 28672 x 4096, "down" 4096 x 14336],
    },
    Model {
        name: "llama-7b",
        layers: layers!["qkv" 12288 x 4096, "gate+up" 22016 x 4096, "down" 4096 x 11008],
    },
    Model {
        name: "llama-13b",
        layers: layers!["qkv" 15360 x 5120, "o" 5120 x 5120, "gate+up" 27648 x 5120, "down" 5120 x 13824],
    },
    Model {
        name: "gpt-neox-20b",
        layers: layers!["qkv" 18432 x 6144, "dense" 6144 x 6144, "h-to-4h" 24576 x 6144, "4h-to-h" 6144 x 24576],
    },
    Model {
        name: "llama-3-70b",
        layers: layers!["gate+up" 57344 x 8192, "down" 8192 x 28672],
    },
];

/// The layers of the named models, with the model's name; of all models when none is named.
pub fn layers(models: &[String]) -> impl Iterator<Item = (&'static str, Layer)> {
    MODELS
        .iter()
        .filter(move |model| models.is_empty() || models.iter().any(|name| name == model.name))
        .flat_map(|model| model.layers.iter().map(|layer| (model.name, *layer)))
}
