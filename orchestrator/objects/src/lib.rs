//! Kubernetes and muster objects: types, quantities, selectors, conditions, `Status`.
