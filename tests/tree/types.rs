//! Types of one crate: no two of one name, no struct with many fields.

use std::collections::BTreeMap;

use syn::visit::{self, Visit};

use super::imports::Sources;

/// Fields that a struct may have before it has to be split by duty.
const MOST_FIELDS: usize = 12;

/// One declaration.
struct Declared {
    file: String,
    name: String,
    fields: usize,
}

/// Every struct, enum, trait and type alias, those of tests left out.
fn declared(files: &Sources) -> Vec<Declared> {
    struct Walk<'a> {
        file: &'a str,
        found: Vec<Declared>,
    }
    impl Walk<'_> {
        fn add(&mut self, name: &syn::Ident, fields: usize) {
            let (file, name) = (self.file.to_owned(), name.to_string());
            self.found.push(Declared { file, name, fields });
        }
    }
    impl<'ast> Visit<'ast> for Walk<'_> {
        fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
            self.add(&item.ident, item.fields.len());
        }

        fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
            self.add(&item.ident, 0);
        }

        fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
            self.add(&item.ident, 0);
        }

        fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
            self.add(&item.ident, 0);
        }

        fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
            if item.ident != "tests" {
                visit::visit_item_mod(self, item);
            }
        }

        // A type within a function has no other reader.
        fn visit_block(&mut self, _: &'ast syn::Block) {}
    }
    let mut found = Vec::new();
    for (file, text) in files.iter().filter(|(name, _)| !super::imports::is_test(name)) {
        let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut walk = Walk { file, found: Vec::new() };
        walk.visit_file(&parsed);
        found.append(&mut walk.found);
    }
    found
}

/// Names that two types of the crate share.
pub(crate) fn shared_names(files: &Sources) -> Vec<String> {
    let mut by_name = BTreeMap::<String, Vec<String>>::new();
    for Declared { file, name, .. } in declared(files) {
        by_name.entry(name).or_default().push(file);
    }
    let shared = by_name.into_iter().filter(|(_, files)| files.len() > 1);
    let problem = |(name, files): (String, Vec<String>)| {
        format!("{}: two types are called {name}: rename one", files.join(", "))
    };
    shared.map(problem).collect()
}

/// Structs with more than [`MOST_FIELDS`] fields, apart from those that `allowed` names.
pub(crate) fn wide_structs(files: &Sources, allowed: &[&str]) -> Vec<String> {
    let wide = declared(files).into_iter().filter(|Declared { file, name, fields }| {
        *fields > MOST_FIELDS && !allowed.contains(&format!("{file}: {name}").as_str())
    });
    let problem = |Declared { file, name, fields }: Declared| {
        format!("{file}: {name} has {fields} fields: split it by duty")
    };
    wide.map(problem).collect()
}
