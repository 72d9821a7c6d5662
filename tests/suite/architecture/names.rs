//! Names and signatures: one name for one type and one file, no parameters packed into tuples.

use std::collections::BTreeMap;

use syn::visit::{self, Visit};

use super::source::{SourceFile, source};

/// Names that each module may use for a type of its own.
const SHARED_NAMES: [&str; 3] = ["Error", "Body", "Config"];

/// What a file declares.
#[derive(Default)]
struct Declarations {
    types: Vec<String>,
    /// Functions with a tuple among their parameters.
    packed: Vec<String>,
}

impl Declarations {
    fn of(file: &SourceFile) -> Self {
        let mut found = Self::default();
        found.visit_file(&file.syntax);
        found
    }
}

impl<'ast> Visit<'ast> for Declarations {
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.types.push(item.ident.to_string());
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.types.push(item.ident.to_string());
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.types.push(item.ident.to_string());
        visit::visit_item_trait(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        let is_packed = signature.inputs.iter().any(|input| match input {
            syn::FnArg::Typed(input) => {
                matches!(&*input.pat, syn::Pat::Tuple(_)) || is_tuple(&input.ty)
            }
            syn::FnArg::Receiver(_) => false,
        });
        if is_packed {
            self.packed.push(signature.ident.to_string());
        }
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }
}

fn is_tuple(kind: &syn::Type) -> bool {
    match kind {
        syn::Type::Tuple(tuple) => !tuple.elems.is_empty(),
        syn::Type::Reference(reference) => is_tuple(&reference.elem),
        _ => false,
    }
}

fn program() -> impl Iterator<Item = SourceFile> {
    let is_program = |file: &SourceFile| !file.is_test() && file.top() != "emulator";
    source().into_iter().filter(is_program)
}

#[test]
fn no_two_types_share_a_name() {
    let mut locations: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in program() {
        for name in Declarations::of(&file).types {
            let locations = locations.entry(name).or_default();
            locations.push(file.path.display().to_string());
        }
    }
    assert!(locations.len() > 300, "the scan found almost nothing");
    locations
        .retain(|name, locations| locations.len() > 1 && !SHARED_NAMES.contains(&name.as_str()));
    assert!(locations.is_empty(), "{locations:#?}");
}

#[test]
fn most_type_names_say_kind_and_subject() {
    let names = program().flat_map(|file| Declarations::of(&file).types);
    let names: std::collections::BTreeSet<String> = names.collect();
    let words = |name: &&String| name.chars().filter(char::is_ascii_uppercase).count();
    let one_word: Vec<&String> = names.iter().filter(|name| words(name) == 1).collect();
    assert!(one_word.len() * 10 <= names.len(), "{one_word:#?}");
}

#[test]
fn parameters_are_never_packed_into_tuples() {
    let packed: Vec<String> = program()
        .flat_map(|file| {
            let location = file.path.display().to_string();
            let packed = Declarations::of(&file).packed.into_iter();
            packed.map(move |name| format!("{location}: {name}"))
        })
        .collect();
    assert!(packed.is_empty(), "{packed:#?}");
}

#[test]
fn no_two_files_share_a_name() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in source().into_iter().filter(|file| !file.is_test()) {
        let name = file.path.file_name().unwrap().to_str().unwrap();
        let places = places.entry(name.to_owned()).or_default();
        places.push(file.path.display().to_string());
    }
    assert!(places.len() > 200, "the scan found almost nothing");
    places.retain(|name, places| places.len() > 1 && name != "mod.rs");
    assert!(places.is_empty(), "{places:#?}");
}
