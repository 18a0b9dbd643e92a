//! `make docs-files`: writes `docs/flags.md` and, for packages, shell completions and the manual page.

use std::path::Path;

use anyhow::Context as _;
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
    let mut command = config::command();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command, "kube-proxy", dist)
            .with_context(|| format!("complete {shell}"))?;
    }
    // Section 8: programs for administrators.
    let page = clap_mangen::Man::new(command).section("8").source("Kubernetes v1.36");
    let mut text = Vec::new();
    page.render(&mut text).context("render the manual page")?;
    std::fs::write(dist.join("kube-proxy.8"), text).context("write the manual page")
}
