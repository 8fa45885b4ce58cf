-- `answer` of the script that only looks: when could the next call go, why not sooner, and how many fit in within the horizon? Charges nothing.
-- For a tenant its own limits count too. The numbers of its reply: time, the number of what decides it (0: nothing; GATE), how many.

local function answer(p, args)
  local at, by = next_slot(p, newest_permit(p))
  local tenant = args.tenants[1]
  if not tenant then
    local count = room(p, at, p.now + math.min(args.horizon, p.spec.longest), args.most)
    return reply(p, 'open', { at, by, count })
  end
  local wait, who = tenant_wait(p, tenant, at, 0)
  if wait then at, by = wait, who end
  return reply(p, 'open', { at, by, 0 })
end
