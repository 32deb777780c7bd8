//! The control plane: resources in; xDS, certificates and injection out.
