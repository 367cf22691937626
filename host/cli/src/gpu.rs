use std::{io, process::ExitCode};

use indicatif::BinaryBytes;
use serde::Serialize;
use zipserv::gpu::{Device, GpuError, driver};

use super::{
    DIFFERENT, Format, Outcome, console,
    self_test::{self, Check},
};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv gpu
  zipserv gpu --json")]
pub struct Gpu {
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct GpuJson {
    #[serde(flatten)]
    device: DeviceJson,
    checks: Vec<Check>,
    passed: bool,
}

#[derive(Serialize)]
struct DeviceJson {
    device: String,
    compute_capability: String,
    sms: u32,
    memory_bytes: usize,
    driver: String,
    /// Which build of the kernels.
    family: String,
    kernels: Vec<&'static str>,
}

impl Gpu {
    pub fn run(&self) -> Outcome {
        let gpu = Device::new(0)?;
        let device = DeviceJson::new(&gpu)?;
        let json = self.format.json;
        if !json {
            device.print()?;
        }
        let mut checks = Vec::new();
        self_test::run(&gpu, |check| {
            if !json {
                console::print(&check)?;
            }
            checks.push(check);
            Ok(())
        })?;
        let passed = checks.iter().all(Check::passed);
        if json {
            console::print_json(&GpuJson {
                device,
                checks,
                passed,
            })?;
        }
        Ok(match passed {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(DIFFERENT),
        })
    }
}

impl DeviceJson {
    fn new(device: &Device) -> Result<Self, GpuError> {
        let (major, minor) = device.capability();
        Ok(Self {
            device: device.name().to_owned(),
            compute_capability: format!("{major}.{minor}"),
            sms: device.sms(),
            memory_bytes: device.memory_bytes(),
            driver: driver()?,
            family: device.family().to_string(),
            kernels: device.kernels().collect(),
        })
    }

    fn print(&self) -> io::Result<()> {
        let memory = BinaryBytes(self.memory_bytes as u64);
        console::print(format_args!(
            "device   {}, compute capability {}, {} SMs, {memory}\n\
             driver   {}\n\
             kernels  {}: {}",
            self.device,
            self.compute_capability,
            self.sms,
            self.driver,
            self.family,
            self.kernels.join(", "),
        ))
    }
}
