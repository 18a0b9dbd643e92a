//! `make docs-files`: writes `docs/flags.md` and, for packages, shell completions and the manual pages, of the commands too.

use std::path::Path;

use anyhow::Context as _;
use clap::Command;
use clap_complete::Shell;

fn main() -> anyhow::Result<()> {
    let mut folders = std::env::args_os().skip(1);
    let (Some(docs), Some(dist)) = (folders.next(), folders.next()) else {
        anyhow::bail!("usage: docs_files DOCS DIST");
    };
    let (docs, dist) = (Path::new(&docs), Path::new(&dist));
    let path = docs.join("flags.md");
    std::fs::write(&path, config::docs::flags_markdown())
        .with_context(|| format!("write {}", path.display()))?;
    std::fs::create_dir_all(dist).with_context(|| format!("make {}", dist.display()))?;
    let mut program = cli::program();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut program, "kube-proxy", dist)
            .with_context(|| format!("complete {shell}"))?;
    }
    // Section 8: programs for administrators. Commands have pages of their own, such as kube-proxy-explain-packet(8).
    let pages = dist.join("man");
    std::fs::create_dir_all(&pages).with_context(|| format!("make {}", pages.display()))?;
    write_pages(program.disable_help_subcommand(true), "kube-proxy", &pages)
}

fn write_pages(command: Command, name: &str, folder: &Path) -> anyhow::Result<()> {
    for below in command.get_subcommands() {
        write_pages(below.clone(), &format!("{name}-{}", below.get_name()), folder)?;
    }
    // Names of commands live as long as the program, which is short.
    let named = command.name(&*name.to_owned().leak());
    let page = clap_mangen::Man::new(named).section("8").source("Kubernetes v1.36");
    let mut text = Vec::new();
    page.render(&mut text).context("render the manual page")?;
    std::fs::write(folder.join(format!("{name}.8")), text)
        .with_context(|| format!("write the page of {name}"))
}
