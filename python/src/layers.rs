//! The tensors of a model, grouped by layer.

use bszfs::readahead::layer_of;
use pyo3::prelude::*;
use std::collections::BTreeMap;

/// Where a group is in the order of computation: inputs, then the layers of each stack by number,
/// then the rest. Groups of one kind are in the order of their first tensors.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Input(usize),
    Layer(usize, u32),
    Rest(usize),
}

/// Group tensors by layer: each group has a name and the indexes of its tensors. Tensors of one
/// module outside the layers, such as an embedding or a norm, are a group.
#[pyfunction]
pub fn layers(names: Vec<String>) -> Vec<(String, Vec<usize>)> {
    let mut stacks: Vec<&str> = Vec::new();
    let mut modules: Vec<&str> = Vec::new();
    let mut groups: BTreeMap<Place, (String, Vec<usize>)> = BTreeMap::new();
    for (i, name) in names.iter().enumerate() {
        let (place, group) = match layer_of(name) {
            Some((stack, number)) => {
                (Place::Layer(position(&mut stacks, stack), number), format!("{stack}{number}"))
            }
            None => {
                let module = name.rsplit_once('.').map_or(&name[..], |(module, _)| module);
                let at = position(&mut modules, module);
                let place = if is_input(module) { Place::Input(at) } else { Place::Rest(at) };
                (place, module.to_owned())
            }
        };
        groups.entry(place).or_insert_with(|| (group, Vec::new())).1.push(i);
    }
    groups.into_values().collect()
}

/// Whether a module comes before the layers.
fn is_input(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    ["emb", "wte", "wpe", "shared"].iter().any(|part| last.contains(part))
}

/// The position of `item` in `known`, to which it is added if it is new.
fn position<'n>(known: &mut Vec<&'n str>, item: &'n str) -> usize {
    known.iter().position(|one| *one == item).unwrap_or_else(|| {
        known.push(item);
        known.len() - 1
    })
}
