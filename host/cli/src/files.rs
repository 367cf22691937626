//! What `compress` and `decompress` are told alike: one input and its output, or several and a folder.

use std::{
    collections::HashMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use zipserv::checkpoint::{self, Options, Report};

use super::{ERROR, Format, Outcome, console, json, sentence::of_file, signals, stdio};

#[derive(clap::Args)]
pub struct Files {
    /// .safetensors files or folders with them; - is standard input
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// The file or folder to write, or, for files, a folder to write to; - is standard output
    #[arg(short, long)]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

/// What is done with each input.
pub struct Job<'a> {
    /// What it is called while it runs.
    pub name: &'static str,
    /// How an output in a folder is called, by the name of its input.
    pub output_name: fn(&str) -> String,
    pub run: &'a dyn Fn(&Path, &Path, &Options) -> Result<Report, checkpoint::Error>,
    /// What a person should know beside that.
    pub notes: &'a dyn Fn(&Report) -> Vec<String>,
    /// Says what came of it.
    pub summary: fn(&Report, Duration) -> String,
}

/// One input, where it goes, and what came of it.
struct Done {
    input: PathBuf,
    output: PathBuf,
    report: Report,
    time: Duration,
}

impl Files {
    pub fn run(&self, job: &Job) -> Outcome {
        let pairs = pairs(&self.inputs, &self.output, job.output_name)?;
        stdio::check_json(self.format.json, &self.output)?;
        let is_one = pairs.len() == 1;
        let is_new = !is_one && !self.output.exists();
        if is_new {
            fs::create_dir(&self.output).map_err(|error| of_file(&self.output, &error))?;
        }
        let mut done = Vec::new();
        let mut code = ExitCode::SUCCESS;
        for (input, output) in pairs {
            match self.run_one(job, &input, &output, is_one) {
                Ok(one) => done.push(one),
                // The others may still be fine.
                Err(error) if !is_one && signals::received().is_none() => {
                    console::error(&*error);
                    code = ExitCode::from(ERROR);
                }
                Err(error) => return Err(error),
            }
        }
        if is_new && done.is_empty() {
            // It stays where there is something in it.
            let _ = fs::remove_dir(&self.output);
        }
        if self.format.json {
            let jobs: Vec<_> = done.iter().map(Done::json).collect();
            match is_one {
                true => console::print_json(&jobs[0])?,
                false => console::print_json(&jobs)?,
            }
        }
        Ok(code)
    }

    fn run_one(
        &self,
        job: &Job,
        input: &Path,
        output: &Path,
        is_one: bool,
    ) -> Result<Done, Box<dyn Error>> {
        let opened = stdio::Input::open(input, &stdio::room_beside(output))?;
        if stdio::is_dash(output) && opened.path().is_dir() {
            let input = stdio::name(input);
            return Err(format!("{input}: a folder cannot go to standard output").into());
        }
        let (mut report, time) = stdio::output(output, |output| {
            let (report, time) = console::timed(job.name, self.force, |options| {
                (job.run)(opened.path(), output, options)
            });
            Ok((report?, time))
        })?;
        if stdio::is_dash(input) {
            report.files[0].path = input.into();
        }
        for line in (job.notes)(&report) {
            console::note(line);
        }
        console::note_warnings(&report);
        if !self.format.json {
            let summary = (job.summary)(&report, time);
            let summary = match is_one {
                true => summary,
                false => format!("{}: {summary}", stdio::name(input)),
            };
            stdio::summary(output, summary)?;
        }
        Ok(Done {
            input: input.into(),
            output: output.into(),
            report,
            time,
        })
    }
}

impl Done {
    fn json(&self) -> json::Job<'_> {
        json::Job::new(&self.input, &self.output, &self.report, self.time)
    }
}

/// The inputs and their outputs. One folder, and one file where there is no folder of the output's name, becomes the
/// output itself; all else goes into it.
fn pairs(
    inputs: &[PathBuf],
    output: &Path,
    output_name: fn(&str) -> String,
) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let shown = |path: &Path| stdio::name(path);
    if let [input] = inputs
        && (input.is_dir() || stdio::is_dash(input) || !output.is_dir())
    {
        return Ok(vec![(input.clone(), output.into())]);
    }
    if stdio::is_dash(output) {
        return Err("several inputs need a folder to go to, not standard output".into());
    }
    if output.exists() && !output.is_dir() {
        return Err(format!(
            "{}: not a folder, which several inputs need",
            shown(output)
        ));
    }
    let mut taken: HashMap<PathBuf, &Path> = HashMap::new();
    let mut pairs = Vec::new();
    for input in inputs {
        if stdio::is_dash(input) {
            return Err("standard input has no name in a folder; give it alone".into());
        }
        let canonical = || input.canonicalize().ok();
        let name = match input.file_name() {
            Some(name) => Some(name.to_owned()),
            None => canonical().and_then(|path| Some(path.file_name()?.to_owned())),
        };
        let Some(name) = name else {
            return Err(format!("{}: has no name to go by", shown(input)));
        };
        // A name that is not UTF-8 stays.
        let name = name
            .to_str()
            .map_or(name.clone(), |name| output_name(name).into());
        let path = output.join(name);
        if let Some(other) = taken.insert(path.clone(), input) {
            let (other, input, path) = (shown(other), shown(input), shown(&path));
            return Err(format!("{other} and {input} would both become {path}"));
        }
        pairs.push((input.clone(), path));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use zipserv::checkpoint::{original_name, stored_name};

    use super::*;

    /// `folder` and `a` are there.
    fn outputs(
        inputs: &[&str],
        output: &str,
        name: fn(&str) -> String,
    ) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("folder")).unwrap();
        fs::write(root.join("a"), "").unwrap();
        let at = |name: &str| match name {
            "-" => name.into(),
            _ => root.join(name),
        };
        let inputs: Vec<_> = inputs.iter().map(|input| at(input)).collect();
        let plain = |text: String| text.replace(&format!("{}/", root.display()), "");
        match pairs(&inputs, &at(output), name) {
            Ok(pairs) => Ok(pairs
                .into_iter()
                .map(|(_, path)| plain(path.display().to_string()))
                .collect()),
            Err(error) => Err(plain(error)),
        }
    }

    #[test]
    fn one_input_becomes_the_output() {
        for (input, output) in [
            ("a", "b"),
            ("folder", "b"),
            ("folder", "folder"),
            ("-", "b"),
            ("a", "-"),
            ("-", "-"),
        ] {
            assert_eq!(outputs(&[input], output, stored_name).unwrap(), [output]);
        }
    }

    #[test]
    fn files_go_into_a_folder() {
        let small = |inputs: &[&str], output| outputs(inputs, output, stored_name);
        assert_eq!(
            small(&["x.safetensors"], "folder").unwrap(),
            ["folder/x.zipserv.safetensors"]
        );
        assert_eq!(
            small(&["x.safetensors", "d/y.bin", "folder"], "new").unwrap(),
            ["new/x.zipserv.safetensors", "new/y.bin", "new/folder"]
        );
        assert_eq!(
            outputs(
                &["x.zipserv.safetensors", "y.safetensors"],
                "new",
                original_name
            )
            .unwrap(),
            ["new/x.safetensors", "new/y.safetensors"]
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |inputs: &[&str], output| outputs(inputs, output, stored_name).unwrap_err();
        assert_eq!(
            refused(&["x", "d/x"], "new"),
            "x and d/x would both become new/x"
        );
        assert_eq!(
            refused(&["x", "y"], "a"),
            "a: not a folder, which several inputs need"
        );
        assert!(refused(&["x", "y"], "-").contains("not standard output"));
        assert!(refused(&["x", "-"], "new").contains("standard input has no name"));
    }
}
