//! The tables of `results` as the page shows them: with the rows that their figures are of.

use std::path::Path;

use serde::Serialize;
use zipserv_bench::results::{
    Inputs, Measured, is_same,
    markdown::{self, Table, Titled},
};

use super::places;

/// A table below its title, and above where its figures are from.
#[derive(Serialize)]
pub struct Card {
    title: String,
    table: Table,
    note: String,
}

/// All tables that the files have something for.
pub fn cards(measured: &Measured, inputs: &Inputs) -> Vec<Card> {
    let mut cards = Vec::new();
    cards.extend(measured.with_published().map(|measured| {
        let note = "published.us / kernels[0].plain_us of each row, with pdl \
                    kernels[0].pdl_us. Decompression: BF16 bytes over us and published.us \
                    of the row of decompress. Bits by layer.compressed_bytes and \
                    published.compressed_bytes.";
        let mut card = Card::of(&measured, markdown::published(&measured), note.to_owned());
        for (layer, line) in measured.layers().into_iter().zip(&mut card.table.lines) {
            if let (Some(found), Some(row)) = (measured.decompress(layer), line.last_mut()) {
                *row += &format!("; {} decompress[{}]", found.path.display(), found.index);
            }
        }
        card
    }));
    cards.extend(measured.with_invariant().map(|measured| {
        let note = "cublas_us / invariant.pdl_us of each row, plain_us where that is null: plans whose \
                    outputs have the same bits whatever the number of tokens. Below, over \
                    kernels[0] of the same rows.";
        Card::of(&measured, markdown::invariant(&measured), note.to_owned())
    }));
    cards.extend(measured.with_many_tokens().map(|many| {
        let note = "2 M N K over kernels[0].pdl_us (plain_us where that is null), decoupled.us \
                    and cublas_us of each row.";
        let mut note = note.to_owned();
        if let Some(dispatch) = markdown::dispatch(measured) {
            note += &format!(" {dispatch}");
        }
        Card::of(&many, markdown::tflops(&many), note)
    }));
    for (path, tuning) in &inputs.tunings {
        let path = path.display();
        let key = tuning.key();
        let about = format!("driver {}, PTX {:08x}", key.driver, key.ptx_crc32);
        cards.push(Card::new(
            markdown::tuning(tuning),
            format!("before_us and after_us of all rows with so many tokens in {path}; {about}."),
        ));
        let changed = Titled {
            title: format!("Launches that tuning changes on {}", key.device),
            table: markdown::changed_launches(tuning),
        };
        let note = format!(
            "default, before_us, launch and after_us of the one row in {path} with the shape and n."
        );
        cards.push(Card::new(changed, note));
    }
    for (path, steps) in &inputs.steps {
        let about = about(&steps.driver, &steps.date, steps.commit.as_deref());
        let note = format!("The largest us of layers[].points over the one before it; {about}.");
        cards.push(Card::numbered(markdown::steps(steps), path, "layers", note));
    }
    for (path, peers) in &inputs.peers {
        let about = about(&peers.driver, &peers.date, peers.commit.as_deref());
        let note = format!("compressed_bytes and us of each row; {about}.");
        cards.push(Card::numbered(markdown::peers(peers), path, "rows", note));
    }
    cards
}

fn about(driver: &str, date: &str, commit: Option<&str>) -> String {
    let commit = commit.unwrap_or("not told");
    format!("driver {driver}, {date}, commit {commit}")
}

impl Card {
    fn new(Titled { title, table }: Titled, note: String) -> Self {
        Self { title, table, note }
    }

    /// With a line for each layer, and below them their means.
    fn of(measured: &Measured, titled: Titled, note: String) -> Self {
        let layers = measured.layers();
        Self::new(titled, note).with_rows(|line| match layers.get(line) {
            Some(layer) => {
                let rows = measured.found();
                places(rows.filter(|found| is_same(&found.row.layer, layer)))
            }
            None => "the rows above".to_owned(),
        })
    }

    /// With a line for each entry of a list in a file.
    fn numbered(titled: Titled, path: &Path, list: &str, note: String) -> Self {
        let path = path.display();
        Self::new(titled, note).with_rows(|line| format!("{path} {list}[{line}]"))
    }

    /// Adds where each line is from.
    fn with_rows(mut self, of_line: impl Fn(usize) -> String) -> Self {
        self.table.header.push("row".to_owned());
        for (i, line) in self.table.lines.iter_mut().enumerate() {
            line.push(of_line(i));
        }
        self
    }
}
