//! Writes the plots of `loadtests/peers/growth`, an SVG file each.
//!
//! usage: cargo run --release -p forebay-loadtests --example plots -- MEASURED.json FOLDER

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use forebay_loadtests::plot::growth::GrowthPlot;

#[derive(Parser)]
struct Options {
    /// The plots as JSON, as `loadtests/peers/growth --json` writes them
    measured: PathBuf,
    /// Where the files go
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let text =
        fs::read(&options.measured).with_context(|| options.measured.display().to_string())?;
    let plots: Vec<GrowthPlot> = serde_json::from_slice(&text)?;
    fs::create_dir_all(&options.folder)?;
    for plot in plots {
        let path = options.folder.join(format!("{}.svg", plot.name));
        fs::write(&path, plot.svg()).with_context(|| path.display().to_string())?;
        println!("{}", path.display());
    }
    Ok(())
}
