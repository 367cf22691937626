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
        let note = "The time of the published kernel over that of the plan's, both launched plainly. \
                    Decompression: BF16 bytes over the time of ours and of the published kernel.";
        let mut card = Card::of(&measured, markdown::published(&measured), note.to_owned());
        for (layer, line) in measured.layers().into_iter().zip(&mut card.table.lines) {
            if let (Some(found), Some(row)) = (measured.decompress(layer), line.last_mut()) {
                let (number, path) = (found.index + 1, found.path.display());
                *row += &format!("; decompression {number} of {path}");
            }
        }
        card
    }));
    cards.extend(measured.with_invariant().map(|measured| {
        let note = "The time of cuBLAS over that of plans whose outputs have the same bits whatever the \
                    number of tokens, with programmatic dependent launch where the device has it. The last \
                    line compares them with the plan's own kernels of the same rows.";
        Card::of(&measured, markdown::invariant(&measured), note.to_owned())
    }));
    cards.extend(measured.with_many_tokens().map(|many| {
        let note = "Operations over the times of the plan's kernel, of decompression followed by cuBLAS, and \
                    of cuBLAS.";
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
            format!("Geometric means of all rows with so many tokens in {path}; {about}."),
        ));
        let changed = Titled {
            title: format!("Launches that tuning changes on {}", key.device),
            table: markdown::changed_launches(tuning),
        };
        let note = format!("The row in {path} with the same shape and tokens.");
        cards.push(Card::new(changed, note));
    }
    for (path, steps) in &inputs.steps {
        let about = about(&steps.driver, &steps.date, steps.commit.as_deref());
        let note = format!("The largest ratio of a time to the one before it; {about}.");
        cards.push(Card::numbered(markdown::steps(steps), path, "layer", note));
    }
    for (path, peers) in &inputs.peers {
        let about = about(&peers.driver, &peers.date, peers.commit.as_deref());
        let note = format!("Compressed bytes and times; {about}.");
        cards.push(Card::numbered(markdown::peers(peers), path, "row", note));
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

    /// With a line for each `entry` of a file.
    fn numbered(titled: Titled, path: &Path, entry: &str, note: String) -> Self {
        let path = path.display();
        Self::new(titled, note).with_rows(|line| format!("{entry} {} of {path}", line + 1))
    }

    /// Adds where each line is from.
    fn with_rows(mut self, of_line: impl Fn(usize) -> String) -> Self {
        self.table.header.push("from".to_owned());
        for (i, line) in self.table.lines.iter_mut().enumerate() {
            line.push(of_line(i));
        }
        self
    }
}
