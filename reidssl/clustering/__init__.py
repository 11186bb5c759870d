"""Clustering of features into pseudo-labels, and the cluster memory that is trained with them."""
