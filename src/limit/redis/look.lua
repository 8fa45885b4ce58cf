-- When could the next call go, why not sooner, and how many fit in until then? Charges nothing. For a tenant its own limits count too.

local at, by = next_slot(newest())
local tenant = call.tenants[1]
if tenant then
  local wait, who = tenant_wait(tenant, at, 0)
  if wait then at, by = wait, who end
  return { 'open', told, epoch, gate, ahead, { at, by, 0 }, {}, {} }
end
local count = room(at, now + math.min(call.ahead, spec.longest), call.most)
return { 'open', told, epoch, gate, ahead, { at, by, count }, {}, {} }
