-- What the book has of the long limits, as src/limit/ledger.rs: by sub-window, how many calls are used and how many are paid for.
--
-- A call is given only when its sub-window has one that is paid for. The caller pays: it writes the book and then says so here. Numbers
-- in the book only grow, and what several callers have paid for the same sub-window is the greatest of their numbers.

local accounts = {}

-- Sub-windows go by their end in milliseconds, rounded up: that is their name in the book.
local function account_of(number, tenant)
  local ledger = spec.ledgers[number]
  local owner = ledger.per_tenant and tenant or ''
  local id = number .. ':' .. owner
  local a = accounts[id]
  if not a then
    a = { key = key_of('book/' .. ledger.name, owner), tenant = owner, subs = {} }
    local stored = redis.call('GET', a.key)
    a.is_new = not stored
    local flat = stored and cmsgpack.unpack(stored) or {}
    for i = 1, #flat, 3 do a.subs[flat[i]] = { used = flat[i + 1], paid = flat[i + 2] } end
    accounts[id] = a
  end
  return a
end

-- The ends of the sub-windows that a call at `at` counts in.
local function sub_ends(ledger, at)
  if ledger.zone == 0 then
    return { math.ceil((math.floor(at / ledger.len) * ledger.len + ledger.len) / 1000) }
  end
  local edges, ends = call.edges[ledger.zone], {}
  for _, i in ipairs(touched(edges, spec.skew, at)) do ends[#ends + 1] = math.ceil(edges[i + 1] / 1000) end
  return ends
end

local function is_covered(tenant, at)
  for number, ledger in ipairs(spec.ledgers) do
    local subs = account_of(number, tenant).subs
    for _, ends_at in ipairs(sub_ends(ledger, at)) do
      local sub = subs[ends_at]
      if not sub or sub.used >= sub.paid then return false end
    end
  end
  return true
end

local function use(tenant, at, calls)
  for number, ledger in ipairs(spec.ledgers) do
    local a = account_of(number, tenant)
    for _, ends_at in ipairs(sub_ends(ledger, at)) do
      local sub = a.subs[ends_at]
      if sub then sub.used, a.is_touched = math.max(sub.used + calls, 0), true end
    end
  end
end

local function pay(number, tenant, ends_at, calls)
  local a = account_of(number, tenant)
  local sub = a.subs[ends_at] or { used = 0, paid = 0 }
  sub.paid = math.max(sub.paid, calls)
  a.subs[ends_at], a.is_touched = sub, true
end

-- What has to be paid before a call of the tenant at `at` is covered, and `wanted` of them: { ledger, end, calls, ... }.
local function missing(tenant, at, wanted, wanted_by_tenant)
  local due = {}
  for number, ledger in ipairs(spec.ledgers) do
    local subs = account_of(number, tenant).subs
    local block = math.max(ledger.block, ledger.per_tenant and wanted_by_tenant or wanted)
    for _, ends_at in ipairs(sub_ends(ledger, at)) do
      local sub = subs[ends_at] or { used = 0, paid = 0 }
      if sub.used >= sub.paid then
        due[#due + 1], due[#due + 2], due[#due + 3] = number, ends_at, sub.used + block
      end
    end
  end
  return due
end

local function save_accounts()
  for _, a in pairs(accounts) do
    if a.is_touched then
      local flat, last = {}, now
      for ends_at, sub in pairs(a.subs) do
        -- No call is given or handed back in a sub-window that ended a while ago; the counts remember it.
        if ends_at * 1000 + spec.skew >= now then
          flat[#flat + 1], flat[#flat + 2], flat[#flat + 3] = ends_at, sub.used, sub.paid
          last = math.max(last, ends_at * 1000 + spec.skew)
        end
      end
      redis.call('SET', a.key, cmsgpack.pack(flat))
      keep(a.key, a.tenant, a.is_new, last)
    end
  end
end
