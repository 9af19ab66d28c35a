#include "headrace/client.h"
#include "transfer.h"

namespace headrace {

std::vector<ArtifactEntry> Client::ListArtifacts(const std::string& run_id,
                                                 const ListArtifactsOptions& options) const {
  std::vector<ArtifactEntry> entries;
  v1::ListArtifactsRequest request;
  request.set_run_id(run_id);
  request.set_folder(options.folder);
  request.set_recursive(options.recursive);
  request.set_page_size(options.page_size);
  do {
    const auto page = connection_->Unary<v1::ListArtifactsResponse>(
        [&](const auto& gateway, auto* context, auto* answer) {
          return gateway.artifacts->ListArtifacts(context, request, answer);
        });
    for (const v1::ArtifactEntry& entry : page.entries()) {
      if (entry.has_artifact()) {
        entries.emplace_back(ArtifactOf(entry.artifact()));
      } else {
        entries.emplace_back(Folder{entry.folder()});
      }
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return entries;
}

}  // namespace headrace
