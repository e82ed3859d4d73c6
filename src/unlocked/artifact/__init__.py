"""The artifact around the papers: settings files, plan, records, the training loop, the workflow. It knows no paper."""
